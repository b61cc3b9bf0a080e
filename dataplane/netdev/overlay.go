package netdev

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"replug/directory/vnet"
)

// Names of the host's own devices.
const (
	VXLANName = "rp-vx0"
	IMDSNear  = "imds0" // has the metadata service's address; frames of guests come in here
	IMDSFar   = "imds1" // the other end, which only keeps imds0's carrier up
)

// VXLANPort is the UDP port of VXLAN (RFC 7348, section 5).
const VXLANPort = 4789

// MetadataAddress is where guests find the metadata service.
var MetadataAddress = netip.AddrFrom4([4]byte{169, 254, 169, 254})

var (
	imdsMAC  = vnet.MAC{0x02, 0x52, 0x50, 0x4c, 0x49, 0x30}
	farMAC   = vnet.MAC{0x02, 0x52, 0x50, 0x4c, 0x49, 0x31}
	metadata = netip.PrefixFrom(MetadataAddress, 32)
	callers  = netip.PrefixFrom(netip.AddrFrom4([4]byte{240}), 4)
)

// EnsureVXLAN makes the collect-metadata VXLAN device, or takes over the one
// that is there. Frames that the kernel is to merge come up through it.
func EnsureVXLAN(name string, mtu int) (Device, error) {
	link, err := find(name)
	switch {
	case errors.Is(err, ErrNoDevice):
		if err := netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs(name), FlowBased: true, Port: VXLANPort}); err != nil {
			return Device{}, fmt.Errorf("make VXLAN device %s (does another one have UDP port %d?): %w", name, VXLANPort, err)
		}
	case err != nil:
		return Device{}, err
	default:
		if v, ok := link.(*netlink.Vxlan); !ok || !v.FlowBased || v.Port != VXLANPort {
			return Device{}, fmt.Errorf("%s: %w", name, ErrForeign)
		}
	}
	return ready(name, mtu)
}

// IMDS is the pair of devices that leads to the metadata service.
type IMDS struct{ Near, Far Device }

// EnsureIMDS makes the pair, or takes over the one that is there. The service
// listens on [MetadataAddress], which the near end has; what it sends to
// 240.0.0.0/4, a host-local address per port and epoch, leaves there too.
//
// On a host that is itself a cloud's VM this hides the cloud's metadata service
// from the host.
func EnsureIMDS() (IMDS, error) {
	if err := ensurePair(); err != nil {
		return IMDS{}, err
	}
	far, err := ready(IMDSFar, 1500)
	if err != nil {
		return IMDS{}, err
	}
	near, err := ready(IMDSNear, 1500)
	if err != nil {
		return IMDS{}, err
	}
	// The datapath has checked the sender; what it made of its address is nothing
	// that the kernel could check better.
	if err := setSysctl("ipv4", IMDSNear, "rp_filter", "0"); err != nil {
		return IMDS{}, err
	}
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: near.Ifindex, Name: near.Name}}
	// Scope link: the kernel never takes it as the source of anything else.
	addr := &netlink.Addr{IPNet: ipNet(metadata), Scope: unix.RT_SCOPE_LINK}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return IMDS{}, fmt.Errorf("give %s to %s: %w", metadata, IMDSNear, err)
	}
	route := &netlink.Route{LinkIndex: near.Ifindex, Dst: ipNet(callers), Scope: unix.RT_SCOPE_LINK}
	if err := netlink.RouteReplace(route); err != nil {
		return IMDS{}, fmt.Errorf("route %s to %s: %w", callers, IMDSNear, err)
	}
	return IMDS{Near: near, Far: far}, nil
}

// ensurePair makes the veth pair, without ARP: there is nobody to ask.
func ensurePair() error {
	link, err := find(IMDSNear)
	if errors.Is(err, ErrNoDevice) {
		a := attrs(IMDSNear)
		a.HardwareAddr = imdsMAC[:]
		pair := &netlink.Veth{LinkAttrs: a, PeerName: IMDSFar, PeerHardwareAddr: farMAC[:]}
		if err := netlink.LinkAdd(pair); err != nil {
			return fmt.Errorf("make %s and %s: %w", IMDSNear, IMDSFar, err)
		}
		link, err = find(IMDSNear)
	}
	if err != nil {
		return err
	}
	if _, ok := link.(*netlink.Veth); !ok || deviceOf(link).MAC != imdsMAC {
		return fmt.Errorf("%s: %w", IMDSNear, ErrForeign)
	}
	if err := netlink.LinkSetARPOff(link); err != nil {
		return fmt.Errorf("set NOARP on %s: %w", IMDSNear, err)
	}
	return nil
}

// EnsureBlackhole keeps a prefix from being anything but the datapath's: frames
// to a PA that come by another way are dropped, not sent back to the fabric.
func EnsureBlackhole(prefix netip.Prefix) error {
	if err := netlink.RouteReplace(blackhole(prefix)); err != nil {
		return fmt.Errorf("blackhole %s: %w", prefix, err)
	}
	return nil
}

// RemoveBlackhole takes the route away; none is fine.
func RemoveBlackhole(prefix netip.Prefix) error {
	if err := netlink.RouteDel(blackhole(prefix)); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove blackhole %s: %w", prefix, err)
	}
	return nil
}

func blackhole(p netip.Prefix) *netlink.Route {
	return &netlink.Route{Dst: ipNet(p.Masked()), Type: unix.RTN_BLACKHOLE}
}

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
