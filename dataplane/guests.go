package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"replug/dataplane/dhcp"
	"replug/dataplane/trap"
	"replug/directory/vnet"
)

// guests answers what guests say to the host: DHCP, ARP replies, reports.
type guests struct {
	ports   *ports
	sender  *trap.Sender
	metrics *Metrics
	mtu     uint16
	log     *slog.Logger
}

// take handles one trapped frame. One of an epoch that is over is dropped: its
// answer would be as well.
func (g *guests) take(t trapped) {
	p := g.ports.get(t.port)
	if p == nil {
		g.metrics.traps.WithLabelValues("no_port").Inc()
		return
	}
	place, ifindex, mac, ok := p.inForce()
	switch {
	case !ok:
		g.metrics.traps.WithLabelValues("no_place").Inc()
	case place.Epoch != t.epoch:
		g.metrics.traps.WithLabelValues("stale").Inc()
	case !t.dhcp:
		p.answered(t.epoch)
	default:
		g.answer(p, place, ifindex, mac, t.frame)
	}
}

// answer sends what DHCP says, if anything.
func (g *guests) answer(p *port, place *vnet.Place, ifindex int, mac vnet.MAC, frame []byte) {
	reply, err := dhcp.Answer(frame, dhcp.Port{MAC: mac, Place: place, MTU: g.mtu})
	var refusal dhcp.Refusal
	switch {
	case errors.As(err, &refusal):
		g.metrics.dhcp.WithLabelValues(string(refusal)).Inc()
		p.log.Debug("dhcp message refused", "err", err)
	default:
		g.metrics.dhcp.WithLabelValues(reply.Kind.String()).Inc()
	}
	if len(reply.Omitted) > 0 {
		p.log.Warn("lease is too long for the guest's message size: options left out", "options", reply.Omitted)
	}
	if reply.Frame == nil {
		return
	}
	if err := g.sender.Answer(p.id, place.Epoch, ifindex, reply.Frame); err != nil {
		reason := "send"
		if errors.Is(err, trap.ErrStale) {
			reason = "stale"
		}
		g.metrics.traps.WithLabelValues(reason).Inc()
		p.log.Debug("dhcp answer was not sent", "err", err)
		return
	}
	p.log.Debug("dhcp answered", "kind", reply.Kind.String(), "place", place.String())
	if reply.Kind == dhcp.Ack {
		p.acked(place.Epoch)
	}
}

// lost counts a trapped frame that could not be read.
func (g *guests) lost(err error) {
	g.metrics.traps.WithLabelValues("malformed").Inc()
	g.log.Warn("trapped frame can't be read", "err", err)
}

// epoch returns the epoch whose place a port serves.
func (ps *ports) epoch(id vnet.PortID) (vnet.Epoch, bool) {
	p := ps.get(id)
	if p == nil {
		return 0, false
	}
	place, _, _, ok := p.inForce()
	if !ok {
		return 0, false
	}
	return place.Epoch, true
}

// guestReport takes what a guest reports over the metadata service.
func (ps *ports) guestReport(ctx context.Context, id vnet.PortID, r vnet.GuestReport) error {
	p := ps.get(id)
	if p == nil {
		return fmt.Errorf("port %d: %w", id, errBusy)
	}
	return p.offer(ctx, r)
}

// prober asks guests through their taps.
type prober struct{ sender *trap.Sender }

func (p prober) Probe(ifindex int, mac vnet.MAC, place *vnet.Place) error {
	a, ok := place.V4()
	if !ok {
		return errAddresses
	}
	return p.sender.Send(ifindex, trap.Probe(a.Gateway, vnet.GatewayMAC, a.CA, mac))
}
