package bpf

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// On every kernel that the datapath is for: it loads, and hooks in one way at least.
func TestFeatures(t *testing.T) {
	if err := HavePrograms(); err != nil {
		t.Errorf("programs: %v", err)
	}
	if err := HaveFilters(); err != nil {
		t.Errorf("filters: %v", err)
	}
	if err := HaveTCX(); err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
		t.Errorf("tcx: %v", err)
	}
	if _, err := DecapFlag(); err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
		t.Errorf("decap flag: %v", err)
	}
	isolate(t)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if n := countFilters(t, lo.Attrs().Index); n != 0 {
		t.Errorf("%d filters are left", n)
	}
}
