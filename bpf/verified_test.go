package bpf

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// growth is by how many percent a program may grow before somebody has to say
// that it should: with -update, in the commit that makes it grow.
const growth = 20

// A cost is what a program costs the verifier, and how long it is afterwards.
type cost struct {
	insns  uint32 // that the verifier went through, of its million
	xlated int    // bytes
}

// Each program is taken by the verifier of this kernel, and costs about what
// testdata/verified.txt says; with -update the file says what it costs.
func TestVerifierCost(t *testing.T) {
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	now, kernel := map[string]cost{}, shortRelease(t)
	spec, err := specOf(Options{Uplink: 3, IMDS: 5, IMDSMAC: imdsMAC, GatewayMAC: gatewayMAC, HostAddress: hostA, PAPrefix: prefixA, UnderlayMTU: 1550})
	if err != nil {
		t.Fatal(err)
	}
	for name := range spec.Programs {
		now[name] = verify(t, spec, name)
	}
	if t.Failed() {
		return
	}
	file := filepath.Join("testdata", "verified.txt")
	all := readCosts(t, file)
	if *update {
		all[kernel] = now
		writeCosts(t, file, all)
	}
	if len(all[kernel]) == 0 {
		t.Logf("nothing is recorded for Linux %s: %v", kernel, now)
		return
	}
	for name, is := range now {
		was, ok := all[kernel][name]
		if !ok || grown(was.insns, is.insns) || grown(uint32(was.xlated), uint32(is.xlated)) {
			t.Errorf("%s on Linux %s costs the verifier %d instructions and has %d bytes; recorded are %d and %d, and %d%% more are allowed. If that is as it should be: -update",
				name, kernel, is.insns, is.xlated, was.insns, was.xlated, growth)
		}
	}
	for name := range all[kernel] {
		if _, ok := now[name]; !ok {
			t.Errorf("%s is recorded, but there is no such program: -update", name)
		}
	}
}

func grown(was, is uint32) bool { return is > was+was*growth/100 }

// What the constants leave out of a program the verifier never sees: the programs
// of an IPv6 underlay, and of kernels with the flag that takes a tunnel's headers
// off merged frames, which this one may not have.
func TestVerifierOfEveryConfig(t *testing.T) {
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	v4 := Options{Uplink: 3, IMDS: 5, IMDSMAC: imdsMAC, GatewayMAC: gatewayMAC, HostAddress: hostA, PAPrefix: prefixA, UnderlayMTU: 1550}
	v6 := v4
	v6.HostAddress, v6.PAPrefix, v6.UnderlayMTU = hostA6, prefixA6, 1570
	for _, o := range []Options{v4, v6} {
		for _, flags := range []uint64{0, 1 << 8} {
			o.DecapFlags = flags
			spec, err := specOf(o)
			if err != nil {
				t.Fatal(err)
			}
			for name := range spec.Programs {
				verify(t, spec, name)
			}
		}
	}
}

// verify loads one program by itself, so that a verifier that refuses it says
// all that it has to say.
func verify(t *testing.T, spec *ebpf.CollectionSpec, name string) cost {
	t.Helper()
	alone := unpinned(spec)
	alone.Programs = map[string]*ebpf.ProgramSpec{name: alone.Programs[name]}
	c, err := ebpf.NewCollection(alone)
	if err != nil {
		var said *ebpf.VerifierError
		if errors.As(err, &said) {
			err = fmt.Errorf("%w\n%-40v", err, said)
		}
		t.Errorf("%s: %v", name, err)
		return cost{}
	}
	defer c.Close()
	info, err := c.Programs[name].Info()
	if err != nil {
		t.Fatal(err)
	}
	insns, _ := info.VerifiedInstructions()
	xlated, err := info.TranslatedSize()
	if err != nil {
		t.Fatal(err)
	}
	return cost{insns, xlated}
}

// shortRelease is "6.18" of 6.18.44-7-amd64: verifiers change with it.
func shortRelease(t *testing.T) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	parts := strings.SplitN(unix.ByteSliceToString(u.Release[:]), ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

// readCosts reads kernel -> program -> cost.
func readCosts(t *testing.T, file string) map[string]map[string]cost {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	all := map[string]map[string]cost{}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		var name, kernel string
		var c cost
		if _, err := fmt.Sscan(line, &name, &kernel, &c.insns, &c.xlated); err != nil {
			t.Fatalf("%s: %q: %v", file, line, err)
		}
		if all[kernel] == nil {
			all[kernel] = map[string]cost{}
		}
		all[kernel][name] = c
	}
	return all
}

func writeCosts(t *testing.T, file string, all map[string]map[string]cost) {
	t.Helper()
	lines := []string{}
	for kernel, programs := range all {
		for name, c := range programs {
			lines = append(lines, fmt.Sprintf("%-20s %-6s %8d %8d\n", name, kernel, c.insns, c.xlated))
		}
	}
	slices.Sort(lines)
	head := "# What each program costs the verifier, by kernel: instructions gone through, bytes afterwards. Written by -update.\n"
	if err := os.WriteFile(file, []byte(head+strings.Join(lines, "")), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("recorded %v", slices.Sorted(maps.Keys(all)))
}
