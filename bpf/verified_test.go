package bpf

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

// Each program by itself, so that a verifier that refuses one says all it has
// to say about it.
func TestVerifierTakesEachProgram(t *testing.T) {
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	spec, err := loadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		alone := spec.Copy()
		alone.Programs = map[string]*ebpf.ProgramSpec{name: p.Copy()}
		for _, m := range alone.Maps {
			m.Pinning = ebpf.PinNone
		}
		c, err := ebpf.NewCollection(alone)
		if err == nil {
			c.Close()
			continue
		}
		var said *ebpf.VerifierError
		if errors.As(err, &said) {
			t.Errorf("%s: %v\n%-40v", name, err, said)
			continue
		}
		t.Errorf("%s: %v", name, err)
	}
}
