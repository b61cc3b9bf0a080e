package dataplane

import (
	"context"
	"net/netip"

	"replug/dataplane/trap"
	"replug/directory/frame"
	"replug/directory/vnet"
)

// resets are TCP resets as frames, sent by the host past the datapath.
type resets struct{ sender *trap.Sender }

// Guest sends the reset that the other end would have sent: through the gateway,
// as everything comes.
func (r resets) Guest(ifindex int, mac vnet.MAC, c Connection) error {
	f, err := reset(mac, c.Remote, c.Local, c.LocalAck, c.RemoteAck)
	if err != nil {
		return err
	}
	return r.sender.Send(ifindex, f)
}

// Peer sends the reset that the guest would have sent: into the peer's tap, or to
// the peer's host.
func (r resets) Peer(from vnet.PA, w Way, c Connection) error {
	f, err := reset(w.MAC, c.Local, c.Peer, c.RemoteAck, c.LocalAck)
	if err != nil {
		return err
	}
	if w.Ifindex != 0 {
		return r.sender.Send(w.Ifindex, f)
	}
	out := frame.Outer{SrcMAC: w.Hop.Src, DstMAC: w.Hop.Dst, Src: from.Addr, Dst: w.PA.Addr, VNI: w.VNI}
	return r.sender.Send(w.Hop.Ifindex, frame.Encapsulate(out, f))
}

// reset is one with the number that the receiver expects, or it would be ignored
// (RFC 9293, 3.10.7.4).
func reset(to vnet.MAC, src, dst netip.AddrPort, seq, ack uint32) ([]byte, error) {
	return frame.Compose(frame.Spec{
		SrcMAC: vnet.GatewayMAC, DstMAC: to, Src: src.Addr(), Dst: dst.Addr(), Protocol: vnet.TCP,
		SrcPort: src.Port(), DstPort: dst.Port(), Flags: frame.RST | frame.ACK, Seq: seq, Ack: ack,
	})
}

// Way finds how an address is reached from a place, as the datapath does: its
// subnets first, then the longest route.
func (ns *networks) Way(place *vnet.Place, to netip.Addr) (Way, bool) {
	vni, ca := nextOf(place, to)
	if !ca.IsValid() {
		return Way{}, false
	}
	m, ok, err := ns.datapath.Mapping(MappingKey{vni, vnet.CA{Addr: ca}})
	if err != nil || !ok {
		return Way{}, false
	}
	w := Way{VNI: vni, MAC: m.MAC, PA: m.PA}
	if w.Ifindex, ok = ns.tapOf(vni, m.MAC); ok {
		return w, true
	}
	w.Hop, ok = ns.neighbours.NextHop(context.Background(), m.PA.Addr)
	return w, ok
}

// nextOf returns the network and the address in it that leads to a destination.
func nextOf(place *vnet.Place, to netip.Addr) (vnet.VNI, netip.Addr) {
	for _, a := range place.Addrs {
		if a.Prefix().Contains(to) {
			return place.VNI, to
		}
	}
	var best *vnet.Route
	for i := range place.Routes {
		if r := &place.Routes[i]; r.Prefix.Contains(to) && (best == nil || r.Prefix.Bits() > best.Prefix.Bits()) {
			best = r
		}
	}
	switch {
	case best == nil:
		return 0, netip.Addr{}
	case best.Peer != 0:
		return best.Peer, to
	case best.NextHop.IsValid():
		return place.VNI, best.NextHop
	}
	return place.VNI, to
}
