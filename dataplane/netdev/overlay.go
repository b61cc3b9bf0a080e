package netdev

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"runtime"

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

// MetadataAddresses are where guests find the metadata service: the one that
// every cloud has, its IPv6 counterpart as on EC2, and Azure's wire server.
var MetadataAddresses = []netip.Addr{
	netip.AddrFrom4([4]byte{169, 254, 169, 254}),
	netip.AddrFrom16([16]byte{0xfd, 0x00, 0x0e, 0xc2, 14: 0x02, 15: 0x54}),
	netip.AddrFrom4([4]byte{168, 63, 129, 16}),
}

var (
	imdsMAC = vnet.MAC{0x02, 0x52, 0x50, 0x4c, 0x49, 0x30}
	farMAC  = vnet.MAC{0x02, 0x52, 0x50, 0x4c, 0x49, 0x31}
	// callers are the host-local addresses that stand for a port in an epoch.
	callers = []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{240}), 4),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x52, 0x50, 0x47}), 32),
	}
)

// EnsureVXLAN makes the collect-metadata VXLAN device, or takes over the one
// that is there. Frames that the kernel is to merge come up through it. Over IPv6
// they may have no UDP checksum, as VXLAN allows (RFC 6935, RFC 7348).
func EnsureVXLAN(name string, mtu int) (Device, error) {
	link, err := find(name)
	switch {
	case errors.Is(err, ErrNoDevice):
		if err := netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs(name), FlowBased: true, Port: VXLANPort,
			UDP6ZeroCSumRx: true, UDP6ZeroCSumTx: true}); err != nil {
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
// listens on [MetadataAddresses], which the near end has; what it sends to
// the callers' host-local addresses, one per port and epoch, leaves there too.
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
	// It has IPv6 with the addresses given here and no others, and says nothing by itself.
	near, err := readyWith(IMDSNear, 1500, setting{"addr_gen_mode", "1"}, setting{"accept_ra", "0"},
		setting{"router_solicitations", "0"}, setting{"disable_ipv6", "0"})
	if err != nil {
		return IMDS{}, err
	}
	// The datapath has checked the sender; what it made of its address is nothing
	// that the kernel could check better.
	if err := setSysctl("ipv4", IMDSNear, "rp_filter", "0"); err != nil {
		return IMDS{}, err
	}
	if err := addresses(near); err != nil {
		return IMDS{}, err
	}
	return IMDS{Near: near, Far: far}, nil
}

// addresses gives the near end the service's addresses and the routes to callers.
func addresses(near Device) error {
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: near.Ifindex, Name: near.Name}}
	for _, a := range MetadataAddresses {
		// Scope link: the kernel never takes it as the source of anything else. An IPv6
		// address serves the same end by being valid for ever and never preferred.
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen())), Scope: unix.RT_SCOPE_LINK}
		if a.Is6() {
			addr.Scope, addr.Flags = unix.RT_SCOPE_UNIVERSE, unix.IFA_F_NODAD|unix.IFA_F_NOPREFIXROUTE
			addr.ValidLft = math.MaxUint32
		}
		if err := netlink.AddrReplace(link, addr); err != nil && !(a.Is6() && noIPv6(err)) {
			return fmt.Errorf("give %s to %s: %w", a, IMDSNear, err)
		}
	}
	for _, p := range callers {
		route := &netlink.Route{LinkIndex: near.Ifindex, Dst: ipNet(p), Scope: unix.RT_SCOPE_LINK}
		if p.Addr().Is6() {
			route.Scope = unix.RT_SCOPE_UNIVERSE
		}
		if err := netlink.RouteReplace(route); err != nil && !(p.Addr().Is6() && noIPv6(err)) {
			return fmt.Errorf("route %s to %s: %w", p, IMDSNear, err)
		}
	}
	return nil
}

// noIPv6 says that the kernel has no IPv6 at all, or was told to have none:
// guests reach the service over IPv4 then.
func noIPv6(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EACCES)
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

// TryVXLAN makes a VXLAN device as [EnsureVXLAN] does, in a network namespace of
// its own that is gone at once.
func TryVXLAN() error {
	return apart(func() error {
		return netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs("try"), FlowBased: true, Port: VXLANPort})
	})
}

// TryVeth is TryVXLAN for a pair of veth devices.
func TryVeth() error {
	return apart(func() error { return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs("try"), PeerName: "try-p"}) })
}

// apart runs f in a new network namespace, on a thread that ends with it.
func apart(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make a network namespace to try it in: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
