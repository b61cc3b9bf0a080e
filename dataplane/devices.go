package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"replug/dataplane/netdev"
	"replug/directory/vnet"
)

// overhead is what VXLAN takes of the underlay's MTU (RFC 7348, section 4.3: outer
// IP, UDP, VXLAN and inner Ethernet headers).
func overhead(a netip.Addr) int {
	if a.Is4() {
		return 20 + 8 + 8 + 14
	}
	return 40 + 8 + 8 + 14
}

// What guests must be left: every host takes a datagram of 576 bytes (RFC 791),
// and IPv6 works with no less than 1280 (RFC 8200, section 5).
const (
	leastMTU  = 576
	leastMTU6 = 1280
)

// An underlay is the host's side of the network that carries frames.
type underlay struct {
	uplink netdev.Uplink
	imds   netdev.IMDS
	vxlan  netdev.Device
	prefix netip.Prefix // PAs of this host
	mtu    uint16       // left to guests
}

// deviceName names a device for people; 0 is the uplink.
func (u *underlay) deviceName(ifindex int) string {
	if ifindex == 0 {
		return u.uplink.Name
	}
	if d, err := net.InterfaceByIndex(ifindex); err == nil {
		return d.Name
	}
	return fmt.Sprintf("device %d, which is gone", ifindex)
}

// plug makes the host's devices, or adopts them.
func plug(uplink string, prefix netip.Prefix) (*underlay, error) {
	var u underlay
	var err error
	if u.uplink, err = findUplink(uplink, prefix); err != nil {
		return nil, fmt.Errorf("find the uplink (give --uplink): %w", err)
	}
	taken := overhead(u.uplink.Addr)
	if u.uplink.MTU < leastMTU+taken {
		return nil, fmt.Errorf("uplink %s has an MTU of %d bytes: at least %d are needed", u.uplink.Name, u.uplink.MTU, leastMTU+taken)
	}
	u.mtu = uint16(min(u.uplink.MTU, 9216) - taken)
	if u.prefix = prefix; !prefix.IsValid() {
		u.prefix = netip.PrefixFrom(u.uplink.Addr, u.uplink.Addr.BitLen())
	}
	if u.ownRange() {
		if err := netdev.EnsureBlackhole(u.prefix); err != nil {
			return nil, fmt.Errorf("keep the PA prefix off this host: %w", err)
		}
	}
	if u.vxlan, err = netdev.EnsureVXLAN(netdev.VXLANName, u.uplink.MTU); err != nil {
		return nil, fmt.Errorf("make the VXLAN device: %w", err)
	}
	if u.imds, err = netdev.EnsureIMDS(); err != nil {
		return nil, fmt.Errorf("make the metadata service's device: %w", err)
	}
	return &u, nil
}

// findUplink looks for an address of the family of the PAs. Where none are given
// the host's own address is the PA: the IPv4 one if there is one.
func findUplink(name string, prefix netip.Prefix) (netdev.Uplink, error) {
	if prefix.IsValid() {
		return netdev.FindUplink(name, netdev.FamilyOf(prefix.Addr()))
	}
	u, err := netdev.FindUplink(name, netdev.IPv4)
	if errors.Is(err, netdev.ErrNoUplink) {
		u, err = netdev.FindUplink(name, netdev.IPv6)
	}
	return u, err
}

// ownRange reports whether PAs are other addresses than the host's own. Then
// none of them may be local, lest guests' frames reach services of the host.
func (u *underlay) ownRange() bool { return !u.prefix.Contains(u.uplink.Addr) }

// taps are real devices of the host that has the underlay.
type taps struct{ host *underlay }

func (taps) Ensure(id vnet.PortID, mtu int) (int, error) {
	d, err := netdev.CreateTap(netdev.TapName(id), mtu, 0)
	return d.Ifindex, err
}

func (t taps) Find(name string, last Device) (Device, error) {
	if last.Ifindex != 0 && netdev.Index(name) == last.Ifindex {
		return last, nil
	}
	d, err := netdev.Find(name)
	if errors.Is(err, netdev.ErrNoDevice) {
		return Device{}, fmt.Errorf("%w: create it there, or detach the port", err)
	}
	if err == nil {
		err = t.host.lends(d)
	}
	if err == nil {
		err = netdev.KeepIPv6Off(name)
	}
	return Device{Ifindex: d.Ifindex, Tap: d.Tap, Peer: d.Peer}, err
}

// lends returns why a device can't be a port's, or nil. A port's programs drop
// what is not from its guest: on a device of the host's own they would cut it off.
func (u *underlay) lends(d netdev.Device) error {
	_, port := netdev.TapPort(d.Name)
	why := ""
	switch {
	case d.Ifindex == u.uplink.Ifindex:
		why = "it is the host's uplink, which the host would lose"
	case port, d.Name == netdev.VXLANName, d.Name == netdev.IMDSNear, d.Name == netdev.IMDSFar:
		why = "the host agent made it for itself"
	case !d.Tap && d.Kind != "veth":
		why = fmt.Sprintf("it is neither a tap nor a veth (its kind: %s), so no guest is behind it", d.Kind)
	default:
		return nil
	}
	return fmt.Errorf("device %s can't be a port's: %s: detach the port, and attach it to the tap or veth of its guest", d.Name, why)
}

func (taps) Delete(id vnet.PortID) error { return netdev.Delete(netdev.TapName(id)) }

// neighbours asks the kernel.
type neighbours struct{ log *slog.Logger }

func (n neighbours) NextHop(_ context.Context, dst netip.Addr) (NextHop, bool) {
	h, err := netdev.Resolve(dst)
	if err != nil {
		n.log.Debug("no next hop", "to", dst, "err", err)
		return NextHop{}, false
	}
	return NextHop{Ifindex: h.Ifindex, Src: h.SrcMAC, Dst: h.DstMAC}, h.Resolved
}
