// Package tap opens tap devices inside network namespaces.
package tap

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"replug/tests/lab/space"
)

// Options of a tap.
type Options struct {
	// VNetHdr prefixes each frame with struct virtio_net_hdr and lets frames
	// with unfinished checksums and up to 64 KiB of TCP across, as QEMU does.
	VNetHdr bool
	// NAPI makes frames arrive through NAPI and GRO, as on a real NIC.
	NAPI bool
	// Persist keeps the device when its file is closed.
	Persist bool
	MAC     net.HardwareAddr // nil: the kernel picks one
	MTU     int              // 0: 1500
	Queue   int              // transmit queue length, 0: the kernel's
	Up      bool
}

// offloads are what a guest with virtio-net accepts, include/uapi/linux/if_tun.h.
const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6

// Open makes the tap, or opens a persistent one, in the namespace with that path
// ("" for the present one). The descriptor is a blocking one.
func Open(netns, name string, o Options) (fd int, err error) {
	open := func() error {
		if fd, err = open(name, o); err != nil {
			return fmt.Errorf("tap %s: %w", name, err)
		}
		if err = configure(name, o); err != nil {
			unix.Close(fd)
			return fmt.Errorf("tap %s: %w", name, err)
		}
		return nil
	}
	if netns == "" {
		return fd, open()
	}
	err = space.Do(netns, open)
	return fd, err
}

func open(name string, o Options) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if o.VNetHdr {
		flags |= unix.IFF_VNET_HDR
	}
	if o.NAPI {
		flags |= unix.IFF_NAPI
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err == nil && o.VNetHdr {
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads)
	}
	if err == nil && o.Persist {
		err = unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func configure(name string, o Options) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if o.MAC != nil {
		if err := netlink.LinkSetHardwareAddr(link, o.MAC); err != nil {
			return fmt.Errorf("set address %s: %w", o.MAC, err)
		}
	}
	if o.MTU != 0 {
		if err := netlink.LinkSetMTU(link, o.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", o.MTU, err)
		}
	}
	if o.Queue != 0 {
		if err := netlink.LinkSetTxQLen(link, o.Queue); err != nil {
			return fmt.Errorf("set queue length %d: %w", o.Queue, err)
		}
	}
	if o.Up {
		return netlink.LinkSetUp(link)
	}
	return nil
}

// SetCarrier is the link's state as the side behind the device sees it.
func SetCarrier(fd int, up bool) error {
	v := int32(0)
	if up {
		v = 1
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETCARRIER, int(v)); err != nil {
		return fmt.Errorf("set carrier: %w", err)
	}
	return nil
}
