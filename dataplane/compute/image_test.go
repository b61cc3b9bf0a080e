package compute

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"replug/directory/vnet"
)

// The host offers what it can use, with what image.json says of it; an image whose
// personality can't be read is not offered, since its guests would wait for ever.
func TestImages(t *testing.T) {
	q := &QEMU{c: Config{Images: t.TempDir(), Log: slog.New(slog.DiscardHandler)}}
	for name, about := range map[string]string{
		"tiny": "", "debian": `{"personality": "cloud-init"}`, "appliance": `{"personality": "plain"}`, "agent": `{}`,
		"typo": `{"personality": "cloudinit"}`, "unknown": `{"personalty": "plain"}`, "broken": `{`,
	} {
		dir := filepath.Join(q.c.Images, name)
		check(t, os.Mkdir(dir, 0o755))
		check(t, os.WriteFile(filepath.Join(dir, "vmlinuz"), nil, 0o644))
		if about != "" {
			check(t, os.WriteFile(filepath.Join(dir, "image.json"), []byte(about), 0o644))
		}
	}
	got, err := q.Images()
	check(t, err)
	want := []Image{{"agent", ""}, {"appliance", vnet.PersonalityPlain}, {"debian", vnet.PersonalityCloudInit}, {"tiny", ""}}
	if !slices.Equal(got, want) {
		t.Errorf("offered %v, want %v", got, want)
	}
}

// bootless is a QEMU that writes down what it was to boot, and boots the disk.
const bootless = `#!/bin/sh
rest=
while [ $# -gt 0 ]; do
	case $1 in
	-kernel|-initrd) echo "$1 $(cat "$2")" >>$BOOTED; shift ;;
	-append) echo "$1 $2" >>$BOOTED; shift ;;
	*) rest="$rest '$1'" ;;
	esac
	shift
done
eval exec qemu-system-x86_64 "$rest"
`

// refusesHalfARecord cuts off what says of what a machine is made, as a crash may: it is
// not started with what its image's name means by now, nor is what it boots replaced.
func (h *host) refusesHalfARecord(m vnet.Machine, nic NIC, kernel string) {
	h.t.Helper()
	record := filepath.Join(h.q.dir(m.ID), recordFile)
	whole, err := os.ReadFile(record)
	check(h.t, err)
	for _, half := range []int{0, len(whole) / 2} {
		check(h.t, os.WriteFile(record, whole[:half], 0o600))
		_, err = h.q.Ensure(h.t.Context(), m, nic)
		if !errors.Is(err, ErrRecord) || !strings.Contains(err.Error(), record) {
			h.t.Errorf("with %d bytes of its record: %v, want %v", half, err, ErrRecord)
		}
		kept, err := os.ReadFile(filepath.Join(h.q.dir(m.ID), "vmlinuz"))
		check(h.t, err)
		if string(kept) != kernel {
			h.t.Errorf("its kernel is %q, want %q", kept, kernel)
		}
	}
	check(h.t, os.WriteFile(record, whole, 0o600))
}

// A machine boots what it was made of, whatever has become of its image: the name goes
// to another directory, files are replaced, all but the disk is removed.
func TestImageIsReplaced(t *testing.T) {
	for _, store := range []string{"the same file system", "another one"} {
		t.Run(store, func(t *testing.T) {
			booted := filepath.Join(t.TempDir(), "booted")
			t.Setenv("BOOTED", booted)
			program := filepath.Join(t.TempDir(), "qemu")
			check(t, os.WriteFile(program, []byte(bootless), 0o755))
			h := newHost(t, func(c *Config) { c.QEMU = program })
			if store == "another one" {
				check(t, unix.Mount("tmpfs", h.q.dir(""), "tmpfs", 0, "size=256m"))
				t.Cleanup(func() { _ = unix.Unmount(h.q.dir(""), unix.MNT_DETACH) })
			}
			disk, err := os.ReadFile(filepath.Join(h.c.Images, "talks", "disk.qcow2"))
			check(t, err)
			image := func(dir, word string) {
				dir = filepath.Join(h.c.Images, dir)
				check(t, os.MkdirAll(dir, 0o755))
				for name, b := range map[string][]byte{"vmlinuz": []byte("kernel " + word), "initrd.img": []byte("initrd " + word), "cmdline": []byte("of=" + word + "\n"), "disk.qcow2": disk} {
					check(t, os.WriteFile(filepath.Join(dir, name+".new"), b, 0o644))
					check(t, os.Rename(filepath.Join(dir, name+".new"), filepath.Join(dir, name)))
				}
			}
			image("deb-12.1", "first")
			name := filepath.Join(h.c.Images, "deb")
			check(t, os.Symlink("deb-12.1", name))
			nic := h.tap("tap93")
			boots := func(id, word string) {
				t.Helper()
				_ = os.Remove(booted)
				s, err := h.q.Ensure(t.Context(), spec(id, "deb"), nic)
				check(t, err)
				h.said(s, "hello from the disk")
				b, err := os.ReadFile(booted)
				check(t, err)
				if got, want := string(b), "-kernel kernel "+word+"\n-append of="+word+"\n-initrd initrd "+word+"\n"; got != want {
					t.Errorf("%s boots %q, want %q", id, got, want)
				}
				check(t, h.q.Stop(t.Context(), id, false))
			}
			boots("vm-93", "first")
			image("deb-12.2", "second")
			check(t, os.Remove(name))
			check(t, os.Symlink("deb-12.2", name))
			boots("vm-93", "first")
			image("deb-12.1", "third")
			boots("vm-93", "first")
			boots("vm-94", "second")
			h.refusesHalfARecord(spec("vm-93", "deb"), nic, "kernel first")
			check(t, h.q.Close())
			h.open() // another agent
			check(t, os.RemoveAll(filepath.Join(h.c.Images, "deb-12.2")))
			for _, file := range []string{"vmlinuz", "initrd.img", "cmdline"} {
				check(t, os.Remove(filepath.Join(h.c.Images, "deb-12.1", file)))
			}
			boots("vm-93", "first")
		})
	}
}
