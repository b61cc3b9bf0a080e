package bpf

import (
	"testing"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// The driver's hook is taken, kept over a restart, and given back.
func TestAttachNIC(t *testing.T) {
	a := newA(t)
	at := func() bool {
		l, err := link.LoadPinnedLink(linkDir(a.options.PinDir)+"/"+nicPin, nil)
		if err != nil {
			return false
		}
		defer l.Close()
		device, err := deviceOf(l)
		return err == nil && device == a.uplink.Attrs().Index
	}
	a.must(a.dp.AttachNIC(a.uplink.Attrs().Index))
	if !at() {
		t.Fatal("not attached")
	}
	a.must(a.dp.AttachNIC(a.uplink.Attrs().Index)) // as a restarted agent does
	if !at() {
		t.Error("not attached any more")
	}
	a.must(a.dp.DetachNIC())
	a.must(a.dp.DetachNIC())
	if at() {
		t.Error("still attached")
	}
	if err := a.dp.AttachNIC(1 << 20); err == nil {
		t.Error("attached to a device that isn't there")
	}
}

// Frames of an underlay with an MTU of 9000 come in several buffers, which a driver
// hands only to a program that takes them.
func TestAttachNICOfLargeMTU(t *testing.T) {
	a := newA(t)
	peer, err := netlink.LinkByIndex(a.uplink.Attrs().ParentIndex)
	a.must(err)
	for _, l := range []netlink.Link{a.uplink, peer} {
		a.must(netlink.LinkSetMTU(l, 9000))
	}
	a.must(a.dp.AttachNIC(a.uplink.Attrs().Index))
	a.must(a.dp.DetachNIC())
}
