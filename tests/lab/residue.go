package lab

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
)

// Residue lists, in words, whatever is left of a lab: processes, namespaces,
// mounts, pinned BPF objects, devices, files. Empty after a good Down. With ""
// it lists what is left of all labs whose owner is dead, and of tests.
func Residue(name string) []string {
	if name != "" {
		return residueOf(name)
	}
	left := append([]string{}, strays()...)
	for _, n := range Names() {
		if rec, err := readRecord(n); err != nil || !rec.alive() {
			left = append(left, residueOf(n)...)
		}
	}
	return left
}

func residueOf(name string) []string {
	left := []string{}
	for _, m := range members(name) {
		left = append(left, m.String())
	}
	spaces, _ := filepath.Glob(netnsPath(name, "*"))
	for _, s := range spaces {
		left = append(left, "namespace "+filepath.Base(s))
	}
	dir := filepath.Join(Root, name)
	for _, m := range mountsBelow(dir) {
		left = append(left, "mount "+m)
		left = append(left, pins(m)...)
	}
	links, _ := netlink.LinkList()
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "rp-"+name) {
			left = append(left, "device "+l.Attrs().Name)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		left = append(left, "directory "+dir)
	}
	return left
}

// strays are things of labs that nothing else remembers.
func strays() []string {
	var left []string
	// Tests make namespaces of their own, named rt-<room>.
	spaces, _ := filepath.Glob(filepath.Join(linksDir, "rt-*"))
	for _, s := range spaces {
		left = append(left, "namespace "+filepath.Base(s))
	}
	pinned, _ := filepath.Glob("/sys/fs/bpf/replug*")
	for _, p := range pinned {
		left = append(left, "pin "+p)
	}
	return left
}

// pins lists the files of a mount if it is a bpf file system.
func pins(mount string) []string {
	if filepath.Base(mount) != "bpf" {
		return nil
	}
	var left []string
	filepath.WalkDir(mount, func(path string, d os.DirEntry, err error) error {
		// The kernel itself puts iterators there, maps.debug and progs.debug.
		if err == nil && !d.IsDir() && filepath.Ext(path) != ".debug" {
			left = append(left, "pin "+path)
		}
		return nil
	})
	return left
}
