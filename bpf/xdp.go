package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf/link"
)

const nicPin = "nic"

// AttachNIC puts the datapath on the driver of the underlay device, before the
// kernel makes socket buffers: small packets of flows that are known go straight
// into taps that have the [XDP] flag. It comes beside [Datapath.AttachUplink],
// which takes all others. A driver without native XDP is an error that leaves
// everything as it was: the datapath carries as much without, only dearer.
//
// A veth hands XDP frames whose checksums nobody has finished, and a receiver
// refuses them: turn that off where they come from (ethtool -K PEER tx off).
func (d *Datapath) AttachNIC(ifindex int) error {
	pin := filepath.Join(linkDir(d.dir), nicPin)
	taken, err := takeOver(pin, d.objs.FromNic, ifindex)
	if taken || err != nil {
		return err
	}
	l, err := link.AttachXDP(link.XDPOptions{Interface: ifindex, Program: d.objs.FromNic, Flags: link.XDPDriverMode})
	if err != nil {
		return fmt.Errorf("attach to the driver of device %d: %w", ifindex, err)
	}
	defer l.Close()
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pin link %s: %w", nicPin, err)
	}
	return nil
}

// DetachNIC is the reverse of AttachNIC. It is no error if nothing is attached.
func (d *Datapath) DetachNIC() error {
	l, err := link.LoadPinnedLink(filepath.Join(linkDir(d.dir), nicPin), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned link %s: %w", nicPin, err)
	}
	return errors.Join(l.Unpin(), l.Close())
}

// deviceOf returns the device that a link is on, 0 if that is gone.
func deviceOf(l link.Link) (int, error) {
	info, err := l.Info()
	if err != nil {
		return 0, err
	}
	if tcx := info.TCX(); tcx != nil {
		return int(tcx.Ifindex), nil
	}
	if xdp := info.XDP(); xdp != nil {
		return int(xdp.Ifindex), nil
	}
	return 0, nil
}
