// Package netdev makes and finds the network devices and routes that the
// datapath needs, through netlink, in the network namespace of the calling
// thread. An agent runs all of its threads in one.
//
// Every call may be made twice and takes over what is there: devices outlive
// the agent, because traffic goes on without it. It attaches no programs, and
// sends no frames but those by which the kernel asks for a neighbour.
package netdev

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"replug/directory/vnet"
)

// Errors of this package, wrapped with the device or address.
var (
	ErrNoDevice = errors.New("no such device")
	ErrForeign  = errors.New("a device of this name is there that Replug did not make: rename or delete it")
	ErrNoUplink = errors.New("no uplink: no default route, or no address of that family on the device; name the device")
	ErrNoRoute  = errors.New("no route")
	ErrLocal    = errors.New("an address of this host")
)

// A Family is a version of IP.
type Family int

// The families.
const (
	IPv4 Family = unix.AF_INET
	IPv6 Family = unix.AF_INET6
)

// FamilyOf returns the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

func (f Family) String() string {
	if f == IPv4 {
		return "IPv4"
	}
	return "IPv6"
}

// A Device is a network device as it was when it was looked at.
type Device struct {
	Name    string
	Ifindex int
	MTU     int // bytes
	MAC     vnet.MAC
	Kind    string // tuntap, veth, bridge, ...; "device" is hardware
	Tap     bool
	Peer    bool // a veth whose other end is in another network namespace
	Up      bool // administratively; a tap that nobody has opened has no carrier
}

// Find returns a device, or [ErrNoDevice].
func Find(name string) (Device, error) {
	link, err := find(name)
	if err != nil {
		return Device{}, err
	}
	return deviceOf(link), nil
}

// Index is the index of the device that has a name; 0: none is known to have it. It
// costs a tenth of [Find].
func Index(name string) int {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return 0
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(s)
	if err := unix.IoctlIfreq(s, unix.SIOCGIFINDEX, r); err != nil {
		return 0
	}
	return int(r.Uint32())
}

// Delete removes a device; none of that name is fine.
func Delete(name string) error {
	link, err := find(name)
	if errors.Is(err, ErrNoDevice) {
		return nil
	}
	if err != nil {
		return err
	}
	// Somebody else may have been faster.
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

func find(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	var absent netlink.LinkNotFoundError
	if errors.As(err, &absent) {
		return nil, fmt.Errorf("%s: %w", name, ErrNoDevice)
	}
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	return link, nil
}

// IsTap reports whether the device is a tap. One that is gone is none.
func IsTap(ifindex int) bool { return isKind(ifindex, "tuntap", "tun") }

// IsVeth reports whether the device is an end of a veth pair.
func IsVeth(ifindex int) bool { return isKind(ifindex, "veth") }

// IsPeer reports whether the device is an end of a veth pair whose other end is
// in another network namespace, as a container's is.
func IsPeer(ifindex int) bool {
	link, err := netlink.LinkByIndex(ifindex)
	return err == nil && isPeer(link)
}

// isPeer: the kernel names the other end's namespace only if it isn't this one.
func isPeer(link netlink.Link) bool { return link.Type() == "veth" && link.Attrs().NetNsID >= 0 }

func isKind(ifindex int, kinds ...string) bool {
	link, err := netlink.LinkByIndex(ifindex)
	return err == nil && slices.Contains(kinds, link.Type())
}

func deviceOf(link netlink.Link) Device {
	a := link.Attrs()
	d := Device{Name: a.Name, Ifindex: a.Index, MTU: a.MTU, Kind: link.Type(), Up: a.RawFlags&unix.IFF_UP != 0}
	copy(d.MAC[:], a.HardwareAddr)
	d.Peer = isPeer(link)
	if t, ok := link.(*netlink.Tuntap); ok {
		d.Tap = t.Mode == netlink.TUNTAP_MODE_TAP
	}
	return d
}

// ready gives a device its MTU, keeps IPv6 off it, and sets it up. IPv6 goes
// first: a device that comes up with it says hello to the guest.
func ready(name string, mtu int) (Device, error) {
	return readyWith(name, mtu, setting{"disable_ipv6", "1"})
}

// KeepIPv6Off takes a device of somebody else's out of the host's IPv6, so that the
// kernel says nothing of its own to a guest, and nothing of the host's goes there.
func KeepIPv6Off(name string) error { return setSysctl("ipv6", name, "disable_ipv6", "1") }

// A setting is one of a device's for IPv6.
type setting struct{ key, value string }

// readyWith is [ready] with other settings of IPv6.
func readyWith(name string, mtu int, settings ...setting) (Device, error) {
	link, err := find(name)
	if err != nil {
		return Device{}, err
	}
	if link.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return Device{}, fmt.Errorf("set MTU %d of %s: %w", mtu, name, err)
		}
	}
	for _, s := range settings {
		if err := setSysctl("ipv6", name, s.key, s.value); err != nil {
			return Device{}, err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return Device{}, fmt.Errorf("set %s up: %w", name, err)
	}
	return Find(name)
}

// setSysctl writes a device's setting. /proc/sys/net shows the namespace of the
// thread that opens it. A kernel without IPv6 has nothing to switch off.
func setSysctl(family, device, key, value string) error {
	path := filepath.Join("/proc/sys/net", family, "conf", device, key)
	if old, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(old)) == value {
		return nil // also where /proc/sys is read-only
	}
	err := os.WriteFile(path, []byte(value), 0)
	if errors.Is(err, os.ErrNotExist) && family == "ipv6" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set %s of %s: %w", key, device, err)
	}
	return nil
}
