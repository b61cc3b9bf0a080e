package netdev

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"replug/directory/vnet"
)

// TapName is the name of a port's own tap.
func TapName(id vnet.PortID) string { return vnet.TapPrefix + strconv.Itoa(int(id)) }

// TapPort reads what [TapName] made; false for any other name.
func TapPort(name string) (vnet.PortID, bool) {
	s, ok := strings.CutPrefix(name, vnet.TapPrefix)
	n, err := strconv.ParseUint(s, 10, 16)
	id := vnet.PortID(n)
	if !ok || err != nil || id == 0 || id > vnet.MaxPortID || TapName(id) != name {
		return 0, false
	}
	return id, true
}

// Taps returns the ports' own taps, those of ports that nobody wants any more
// included.
func Taps() ([]Device, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var taps []Device
	for _, l := range links {
		if _, ok := TapPort(l.Attrs().Name); ok && isTap(l) {
			taps = append(taps, deviceOf(l))
		}
	}
	return taps, nil
}

// CreateTap makes a persistent tap that QEMU opens with vnet_hdr=on and one
// queue, or takes over the one that is there, open or not. It has no address,
// and is up. Owner is the user id that may open it without being root, -1 for
// nobody. It returns [ErrForeign] if the name is taken by something else.
func CreateTap(name string, mtu, owner int) (Device, error) {
	link, err := find(name)
	switch {
	case errors.Is(err, ErrNoDevice):
		if err := makeTap(name, owner); err != nil {
			return Device{}, fmt.Errorf("make tap %s: %w", name, err)
		}
	case err != nil:
		return Device{}, err
	case !isTap(link):
		return Device{}, fmt.Errorf("%s: %w", name, ErrForeign)
	}
	return ready(name, mtu)
}

// isTap reports whether link is a tap as [CreateTap] makes it.
func isTap(link netlink.Link) bool {
	t, ok := link.(*netlink.Tuntap)
	return ok && t.Mode == netlink.TUNTAP_MODE_TAP && !t.NonPersist &&
		t.Flags&netlink.TUNTAP_VNET_HDR != 0 && t.Flags&netlink.TUNTAP_NO_PI != 0 && t.Flags&netlink.TUNTAP_MULTI_QUEUE == 0
}

func makeTap(name string, owner int) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return err
	}
	if owner >= 0 {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, owner); err != nil {
			return fmt.Errorf("give it to user %d: %w", owner, err)
		}
	}
	return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
}
