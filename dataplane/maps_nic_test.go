package dataplane

import (
	"errors"
	"log/slog"
	"net"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"replug/dataplane/netdev"
)

// A veth hands XDP frames whose checksums nobody has finished: an operator who
// insists on XDP there is told so, instead of losing guests' UDP.
func TestXDPOnAVeth(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the namespace goes with the thread
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "up0", net.HardwareAddr{0x06, 0x1d, 0x2e, 0x3f, 0x4a, 0x5b}
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "up0-p"}))
	l, err := netlink.LinkByName("up0")
	must(t, err)
	uplink := netdev.Uplink{Device: netdev.Device{Name: "up0", Ifindex: l.Attrs().Index}}
	if on, err := attachNIC(nil, uplink, XDPOn, slog.New(slog.DiscardHandler)); on || !errors.Is(err, ErrUnfinished) {
		t.Errorf("xdp on at a veth: %v, %v, want ErrUnfinished", on, err)
	}
}
