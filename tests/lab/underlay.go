package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// addNode makes a namespace with what all have: loopback up, no IPv6 until it is
// asked for, no reverse-path filter, and a directory.
func (l *Lab) addNode(name string) (*Node, error) {
	n := &Node{lab: l, Name: name}
	if err := os.MkdirAll(n.Dir(), 0o700); err != nil {
		return nil, fmt.Errorf("make directory of %s: %w", name, err)
	}
	if err := createNetns(l.rec.Name, name); err != nil {
		return nil, err
	}
	for _, s := range []string{
		"ipv6/conf/all/disable_ipv6=1", "ipv6/conf/default/disable_ipv6=1",
		"ipv4/conf/all/rp_filter=0", "ipv4/conf/default/rp_filter=0",
	} {
		if err := n.sysctl(s); err != nil {
			return nil, err
		}
	}
	return n, n.Netlink(func(h *netlink.Handle) error { return linkUp(h, "lo") })
}

// connect lays the wires and sets addresses and routes.
func (l *Lab) connect(ctx context.Context) error {
	if err := l.Router().sysctl(l.rec.Family.forward()); err != nil {
		return err
	}
	if err := l.veth(serverName, "up0", serverSubnet); err != nil {
		return err
	}
	if err := l.address(l.Server(), serverSubnet); err != nil {
		return err
	}
	for n := 1; n <= l.rec.Hosts; n++ {
		if err := l.connectHost(ctx, n); err != nil {
			return fmt.Errorf("connect host %d: %w", n, err)
		}
	}
	return l.settle(ctx)
}

func (l *Lab) connectHost(ctx context.Context, n int) error {
	host := l.Host(n)
	lay := l.veth
	if l.rec.Wire == WireCable {
		lay = func(node, dev string, subnet int) error { return l.cable(ctx, node, dev, subnet) }
	}
	if err := lay(host.Name, "up0", n); err != nil {
		return err
	}
	if err := l.address(host, n); err != nil {
		return err
	}
	if err := l.routePA(host, n); err != nil {
		return err
	}
	return host.mountBPF()
}

// veth lays a pair between the router, where it is named after the node, and
// the node.
func (l *Lab) veth(node, dev string, subnet int) error {
	router, err := netns.GetFromPath(l.Router().NetNS())
	if err != nil {
		return err
	}
	defer router.Close()
	peer, err := netns.GetFromPath(l.nodes[node].NetNS())
	if err != nil {
		return err
	}
	defer peer.Close()
	pair := netlink.NewLinkAttrs()
	pair.Name, pair.MTU, pair.HardwareAddr = node, l.rec.MTU, wireMAC(subnet, 1)
	pair.Namespace = netlink.NsFd(router)
	err = netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: pair, PeerName: dev, PeerMTU: uint32(l.rec.MTU),
		PeerHardwareAddr: wireMAC(subnet, 2), PeerNamespace: netlink.NsFd(peer),
	})
	if err != nil {
		return fmt.Errorf("lay wire to %s: %w", node, err)
	}
	return nil
}

// address gives both ends of a wire their addresses, and the node its way out.
func (l *Lab) address(n *Node, subnet int) error {
	err := l.Router().Netlink(func(h *netlink.Handle) error {
		return addAddr(h, n.Name, l.rec.Family.gateway(subnet))
	})
	if err != nil {
		return err
	}
	return n.Netlink(func(h *netlink.Handle) error {
		gw := l.rec.Family.gateway(subnet)
		if err := addAddr(h, "up0", netip.PrefixFrom(gw.Addr().Next(), gw.Bits())); err != nil {
			return err
		}
		return h.RouteAdd(&netlink.Route{Gw: gw.Addr().AsSlice()})
	})
}

// routePA sends the host's provider prefix to it, where it ends: whatever the
// datapath doesn't take is dropped.
func (l *Lab) routePA(host *Node, n int) error {
	dst := ipNet(l.PAPrefix(n))
	err := l.Router().Netlink(func(h *netlink.Handle) error {
		return h.RouteAdd(&netlink.Route{Dst: dst, Gw: l.HostAddr(n).AsSlice()})
	})
	if err != nil {
		return fmt.Errorf("route %s: %w", dst, err)
	}
	return host.Netlink(func(h *netlink.Handle) error {
		return h.RouteAdd(&netlink.Route{Dst: dst, Type: unix.RTN_BLACKHOLE})
	})
}

func wireMAC(subnet, end int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x72, 0x77, 0x69, byte(subnet), byte(end)}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func linkUp(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// addAddr sets the device up and gives it the address, host bits kept.
func addAddr(h *netlink.Handle, dev string, p netip.Prefix) error {
	link, err := h.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("find %s: %w", dev, err)
	}
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p)}); err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("add %s to %s: %w", p, dev, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", dev, err)
	}
	return nil
}

// mountBPF gives the host a bpf file system of its own, so that pins of two
// hosts never meet and all go with one unmount.
func (n *Node) mountBPF() error {
	dir := n.BPF()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount the bpf file system of %s: %w", n.Name, err)
	}
	return nil
}

// BPF returns where the host's own bpf file system is mounted.
func (n *Node) BPF() string { return filepath.Join(n.Dir(), "bpf") }
