package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

const (
	uplinkPin = "uplink"
	vxlanPin  = "vxlan"
	imdsPin   = "imds"
	tapPin    = "tap-" // + ifindex
)

// AttachUplink puts the datapath on the underlay device. Like the other Attach
// methods it takes over what an earlier process has pinned, in one step and
// without losing a frame.
func (d *Datapath) AttachUplink(ifindex int) error {
	return d.attach(uplinkPin, d.objs.FromWire, ebpf.AttachTCXIngress, ifindex)
}

// AttachVXLAN puts the datapath on the collect-metadata VXLAN device (UDP port
// 4789) that aggregated frames go up by.
func (d *Datapath) AttachVXLAN(ifindex int) error {
	return d.attach(vxlanPin, d.objs.FromVxlan, ebpf.AttachTCXIngress, ifindex)
}

// AttachIMDS puts the datapath on the device that leads to the metadata service.
func (d *Datapath) AttachIMDS(ifindex int) error {
	return d.attach(imdsPin, d.objs.FromHost, ebpf.AttachTCXEgress, ifindex)
}

// AttachTap puts the datapath on a VM's tap. Without a port for it ([Datapath.SetPort])
// every frame is dropped as no_port.
func (d *Datapath) AttachTap(ifindex int) error {
	return d.attach(tapPin+strconv.Itoa(ifindex), d.objs.FromVm, ebpf.AttachTCXIngress, ifindex)
}

// DetachTap takes the datapath off a tap. It is no error if it isn't on it, or
// if the tap is gone.
func (d *Datapath) DetachTap(ifindex int) error {
	name := tapPin + strconv.Itoa(ifindex)
	err := os.Remove(filepath.Join(linkDir(d.dir), name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("detach tap %d: %w", ifindex, err)
	}
	all, err := filters(d.dir)
	if f, ok := all[name]; ok && err == nil {
		err = f.detach()
	}
	return err
}

// AttachedTaps lists the taps that have a link or a filter, those that are gone
// included.
func (d *Datapath) AttachedTaps() ([]int, error) {
	pins, err := os.ReadDir(linkDir(d.dir))
	if err != nil {
		return nil, fmt.Errorf("list pinned links: %w", err)
	}
	all, err := filters(d.dir)
	if err != nil {
		return nil, err
	}
	names := slices.Collect(maps.Keys(all))
	for _, p := range pins {
		names = append(names, p.Name())
	}
	var taps []int
	for _, name := range names {
		if n, ok := strings.CutPrefix(name, tapPin); ok {
			if ifindex, err := strconv.Atoi(n); err == nil {
				taps = append(taps, ifindex)
			}
		}
	}
	return taps, nil
}

// attach leaves prog on ifindex, by the pinned link called name or, where the
// kernel has no tcx, by the filter of that name. The pin holds the link, so it is
// closed here.
func (d *Datapath) attach(name string, prog *ebpf.Program, at ebpf.AttachType, ifindex int) error {
	if d.noTCX {
		return d.attachFilter(name, prog, ifindex)
	}
	pin := filepath.Join(linkDir(d.dir), name)
	taken, err := takeOver(pin, prog, ifindex)
	if taken || err != nil {
		return err
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: at})
	if err != nil {
		return fmt.Errorf("attach %s to device %d: %w", name, ifindex, err)
	}
	defer l.Close()
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pin link %s: %w", name, err)
	}
	return nil
}

// attachFilter is attach for kernels without tcx. A filter of that name on
// another device goes first.
func (d *Datapath) attachFilter(name string, prog *ebpf.Program, ifindex int) error {
	all, err := filters(d.dir)
	if err != nil {
		return err
	}
	if old, ok := all[name]; ok && old.ifindex != ifindex {
		if err := old.detach(); err != nil {
			return err
		}
	}
	return newFilter(d.dir, name, ifindex).attach(name, prog)
}

// takeOver puts prog into the pinned link if there is one and it still is on
// ifindex. A link whose device has gone, or is another one, loses its pin.
func takeOver(pin string, prog *ebpf.Program, ifindex int) (bool, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open pinned link %s: %w", pin, err)
	}
	defer l.Close()
	device, err := deviceOf(l)
	if err != nil {
		return false, fmt.Errorf("read link %s: %w", pin, err)
	}
	if device != ifindex {
		if err := l.Unpin(); err != nil {
			return false, fmt.Errorf("unpin link %s of a device that is gone: %w", pin, err)
		}
		return false, nil
	}
	if err := l.Update(prog); err != nil {
		return false, fmt.Errorf("replace the program of %s: %w", pin, err)
	}
	return true, nil
}
