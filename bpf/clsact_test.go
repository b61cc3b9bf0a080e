package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A kernel without tcx gets filters: the next agent replaces the program in the
// same filter, and nothing is left when they go.
func TestFiltersInsteadOfLinks(t *testing.T) {
	a := newA(t)
	a.dp.noTCX = true
	tap := a.taps[redA.id]
	a.must(errors.Join(a.dp.AttachUplink(a.options.Uplink), a.dp.AttachTap(tap)))
	name := tapPin + strconv.Itoa(tap)
	before, oldProg := attached(t, a, name)

	next, err := Load(a.options)
	a.must(err)
	t.Cleanup(func() { a.must(next.Close()) })
	next.noTCX = true
	a.must(errors.Join(next.AttachUplink(a.options.Uplink), next.AttachTap(tap)))
	after, newProg := attached(t, a, name)
	if before != after || newProg == oldProg {
		t.Errorf("%s with program %d became %s with program %d, want the same one and a new program", before, oldProg, after, newProg)
	}
	if n := countFilters(t, tap); n != 1 {
		t.Errorf("%d filters on the tap, want 1", n)
	}
	if taps, err := next.AttachedTaps(); err != nil || len(taps) != 1 || taps[0] != tap {
		t.Errorf("taps %v, %v, want %d", taps, err, tap)
	}
	a.must(errors.Join(next.DetachTap(tap), next.DetachTap(tap)))
	if qdiscs := clsacts(t, tap); countFilters(t, tap) != 0 || qdiscs != 0 {
		t.Errorf("after DetachTap: %d filters and %d qdiscs are left", countFilters(t, tap), qdiscs)
	}
	a.must(Remove(a.options.PinDir))
	if n := countFilters(t, a.options.Uplink); n != 0 || clsacts(t, a.options.Uplink) != 0 {
		t.Errorf("after Remove: %d filters on the uplink", n)
	}
}

// Others have filters too: theirs stay, and keep the qdisc.
func TestFiltersOfOthers(t *testing.T) {
	a := newA(t)
	a.dp.noTCX = true
	uplink := a.options.Uplink
	place := newFilter(a.options.PinDir, uplinkPin, uplink)
	a.must(netlink.QdiscAdd(place.qdisc()))
	theirs := place.classifier()
	theirs.Fd, theirs.Name, theirs.DirectAction = a.dp.objs.FromHost.FD(), "theirs", true

	a.must(netlink.FilterAdd(theirs))
	if err := a.dp.AttachUplink(uplink); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "theirs") {
		t.Errorf("in our place: got %v, want ErrForeign with its name", err)
	}
	theirs.Fd = -1
	a.must(netlink.FilterDel(theirs))
	theirs.Fd, theirs.Priority = a.dp.objs.FromHost.FD(), filterPriority+7
	a.must(netlink.FilterAdd(theirs))
	a.must(a.dp.AttachUplink(uplink))
	a.must(Remove(a.options.PinDir))
	left, err := netlink.FilterList(place.device(), place.parent)
	if err != nil || len(left) != 1 || left[0].Attrs().Priority != filterPriority+7 || clsacts(t, uplink) != 1 {
		t.Errorf("after Remove: filters %v, %v, %d qdiscs, want only theirs", left, err, clsacts(t, uplink))
	}
}

// A device that went, and another one that has come in its place.
func TestFilterOfADeviceThatIsGone(t *testing.T) {
	a := newA(t)
	a.dp.noTCX = true
	first := a.veth("vx1", nil)
	a.must(a.dp.AttachVXLAN(first.Attrs().Index))
	a.must(netlink.LinkDel(first))
	second := a.veth("vx1", nil)
	a.must(a.dp.AttachVXLAN(second.Attrs().Index))
	notes, err := os.ReadDir(filterDir(a.options.PinDir))
	a.must(err)
	if len(notes) != 1 || notes[0].Name() != filepath.Base(newFilter("", vxlanPin, second.Attrs().Index).note) {
		t.Errorf("notes %v, want one of device %d", notes, second.Attrs().Index)
	}
	a.must(netlink.LinkDel(second))
	if err := a.dp.AttachVXLAN(second.Attrs().Index); !errors.Is(err, unix.ENODEV) {
		t.Errorf("attach to a device that is gone: got %v, want ENODEV", err)
	}
}

func countFilters(t *testing.T, ifindex int) int {
	t.Helper()
	all, err := netlink.FilterList(filter{ifindex: ifindex}.device(), netlink.HANDLE_MIN_INGRESS)
	if gone(err) != nil {
		t.Fatal(err)
	}
	return len(all)
}

func clsacts(t *testing.T, ifindex int) (n int) {
	t.Helper()
	all, err := netlink.QdiscList(filter{ifindex: ifindex}.device())
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range all {
		if q.Type() == "clsact" {
			n++
		}
	}
	return n
}
