package cluster

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	pb "replug/control/controlpb"
	"replug/tests/lab"
)

// An Attachment is a cheap guest that is handed over as somebody else's VM: a
// tap and a monitor socket.
type Attachment struct {
	Name    string
	Host    int // counted from 1
	Tenant  string
	Network string
	IP      string
	IP6     string // in a network of both families; "": one that is free
	Bits    int    // prefix length, for Static; 0: 24
	MTU     int    // of its NIC before it is told another; 0: what the underlay leaves
	Static  bool   // the address is set by hand; else by DHCP, with replug-guest
}

// waiting is how many frames wait for an attached guest: while machines that are
// emulated have the processors, what copies its frames may rest for a second.
const waiting = 5000

// Attach makes the guest, attaches its port, and waits until the guest has its
// address.
func (c *Cluster) Attach(ctx context.Context, a Attachment) (*lab.Guest, error) {
	mac := macOf(a)
	if a.MTU == 0 {
		a.MTU = c.Lab.GuestMTU()
	}
	g, err := c.Lab.TapGuest(ctx, c.Lab.Host(a.Host), lab.GuestConfig{Name: a.Name, MAC: mac, MTU: a.MTU, Queue: waiting})
	if err != nil {
		return nil, err
	}
	conn, err := c.Conn()
	if err != nil {
		return nil, err
	}
	var more []string
	if a.IP6 != "" {
		more = []string{a.IP6}
	}
	p, err := pb.NewPortsClient(conn).AttachPort(ctx, &pb.AttachPortRequest{RequestId: "attach-" + a.Name, Tenant: a.Tenant, Name: a.Name,
		Host: c.Lab.Host(a.Host).Name, Tap: g.Tap(), Mac: mac.String(), Monitor: g.Monitor(), Network: a.Network, Ip: a.IP, Ips: more})
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", a.Name, err)
	}
	if a.Static {
		err = c.address(ctx, g, a)
	} else if _, err = g.StartAgent(ctx, filepath.Join(c.Config.Bin, "replug-guest")); err == nil {
		err = lab.Until(ctx, "the address of "+a.Name, func() error { return has(g, a.IP) })
	}
	if err != nil {
		return nil, fmt.Errorf("%s (port %s): %w", a.Name, p.GetName(), err)
	}
	return g, nil
}

// address sets the guest's address by hand and waits until its port is open:
// until its gateway answers.
func (c *Cluster) address(ctx context.Context, g *lab.Guest, a Attachment) error {
	ip, err := netip.ParseAddr(a.IP)
	if err != nil {
		return err
	}
	bits := a.Bits
	if bits == 0 {
		bits = 24
	}
	gateway := netip.PrefixFrom(ip, bits).Masked().Addr().Next()
	if err := g.SetAddr(netip.PrefixFrom(ip, bits), gateway); err != nil {
		return err
	}
	return Ping(ctx, g.Node, gateway)
}

func has(g *lab.Guest, ip string) error {
	addrs, err := g.Addrs()
	if err != nil {
		return err
	}
	for _, p := range addrs {
		if p.Addr().String() == ip {
			return nil
		}
	}
	return fmt.Errorf("it has %v, not %s", addrs, ip)
}

// macOf makes a MAC of the guest's name: locally administered, unicast.
func macOf(a Attachment) net.HardwareAddr {
	mac := net.HardwareAddr{0x02, 0x6c, byte(a.Host), 0, 0, 0}
	for i := range a.Name {
		mac[3+i%3] = mac[3+i%3]*31 + a.Name[i]
	}
	return mac
}
