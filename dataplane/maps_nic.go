package dataplane

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/cilium/ebpf"

	"replug/bpf"
	"replug/dataplane/netdev"
)

// The ways to take small packets off the uplink.
const (
	XDPAuto = "auto" // by native XDP where the driver has it and gains by it
	XDPOn   = "on"   // by native XDP, or don't start
	XDPOff  = "off"  // with all others
)

// ErrUnfinished is why a veth is no uplink for XDP: whoever sends into its other
// end leaves checksums to a device, there is none, and XDP can't see that they
// are missing. Guests would lose all UDP.
var ErrUnfinished = errors.New("its frames may come with checksums that nobody has finished, and guests refuse those that XDP hands them")

// attachNIC puts the datapath on the uplink's driver, as the mode says and the
// driver can, and reports whether it is there.
func attachNIC(d *bpf.Datapath, uplink netdev.Uplink, mode string, log *slog.Logger) (bool, error) {
	// A veth copies each frame into a page of its own for XDP: dearer than without.
	veth := netdev.IsVeth(uplink.Ifindex)
	if veth && mode == XDPOn {
		return false, fmt.Errorf("xdp on: %s is a veth: %w; set xdp to auto, which takes them by the kernel's own path", uplink.Name, ErrUnfinished)
	}
	if mode == XDPOff || veth {
		return false, d.DetachNIC()
	}
	err := d.AttachNIC(uplink.Ifindex)
	if err != nil && mode == XDPOn {
		return false, fmt.Errorf("xdp on: %w (set xdp to auto to do without)", err)
	}
	if err != nil {
		log.Info("small packets take the way of all others", "uplink", uplink.Name, "why", err)
		return false, d.DetachNIC()
	}
	return true, nil
}

// takesXDP reports whether XDP can redirect frames to the device: a tap takes
// them, other devices lose them without a word.
func (m *maps) takesXDP(ifindex int) bool { return m.nic && netdev.IsTap(ifindex) }

// decapFlags is what this kernel has for merged frames, see [bpf.DecapFlag].
func decapFlags() (uint64, error) {
	flag, err := bpf.DecapFlag()
	if errors.Is(err, ebpf.ErrNotSupported) {
		return 0, nil
	}
	return flag, err
}
