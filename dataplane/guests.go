package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"replug/dataplane/dhcp"
	"replug/dataplane/nd"
	"replug/dataplane/trap"
	"replug/directory/vnet"
)

// guests answers what guests say to the host: DHCP, Router Solicitations, answers
// to probes, reports.
type guests struct {
	ports   *ports
	checks  *checks
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
	case t.said == saidARP:
		p.answered(ipv4, t.epoch)
	case t.said == saidNeighbour:
		g.neighbour(p, place, t.frame)
	case t.said == saidProbe:
		g.checks.answer(p.id, t.frame)
	case t.said == saidSolicit:
		p.stirs(t.epoch)
		g.solicited(p, place, ifindex, mac, t.frame)
	default:
		p.stirs(t.epoch)
		g.answer(p, place, ifindex, mac, t.frame)
	}
}

// neighbour takes a guest's answer for one of its IPv6 addresses.
func (g *guests) neighbour(p *port, place *vnet.Place, frame []byte) {
	target, err := nd.ParseAnswer(frame)
	a, ok := place.V6()
	switch {
	case err != nil:
		g.metrics.traps.WithLabelValues("malformed").Inc()
		p.log.Debug("neighbour advertisement refused", "err", err)
	case ok && target == a.CA.Addr:
		p.answered(ipv6, place.Epoch)
	}
}

// solicited answers a guest that looks for its router, at once: there is no other
// router that could answer with it.
func (g *guests) solicited(p *port, place *vnet.Place, ifindex int, mac vnet.MAC, frame []byte) {
	to, err := nd.ParseSolicit(frame)
	if err != nil {
		g.metrics.traps.WithLabelValues("malformed").Inc()
		p.log.Debug("router solicitation refused", "err", err)
		return
	}
	for _, f := range advertise(place, p.formerRouters(), mac, to, g.mtu) {
		if !g.send(p, place.Epoch, ifindex, f) {
			return
		}
		g.metrics.adverts.WithLabelValues("solicited").Inc()
	}
	p.answeredRouter(place.Epoch)
}

// send sends an answer that was computed from the place of an epoch.
func (g *guests) send(p *port, epoch vnet.Epoch, ifindex int, frame []byte) bool {
	err := g.sender.Answer(p.id, epoch, ifindex, frame)
	if err == nil {
		return true
	}
	reason := "send"
	if errors.Is(err, trap.ErrStale) {
		reason = "stale"
	}
	g.metrics.traps.WithLabelValues(reason).Inc()
	p.log.Debug("answer was not sent", "err", err)
	return false
}

// answer sends what DHCP says, if anything.
func (g *guests) answer(p *port, place *vnet.Place, ifindex int, mac vnet.MAC, frame []byte) {
	asker := dhcp.Port{MAC: mac, Place: place, MTU: g.mtu}
	if p.personality().CloudInit() {
		asker.WireServer = wireServer
	}
	reply, err := dhcp.Answer(frame, asker)
	var refusal dhcp.Refusal
	switch {
	case errors.As(err, &refusal):
		g.metrics.dhcp.WithLabelValues(string(refusal)).Inc()
		p.log.Debug("dhcp message refused", "err", err)
	default:
		g.metrics.dhcp.WithLabelValues(reply.Kind.String()).Inc()
	}
	if len(reply.Omitted) > 0 {
		p.warn("lease is too long for the guest's message size: options left out", "options", reply.Omitted)
	}
	if reply.Kind == dhcp.Declined {
		p.warn("guest declines its address: it says that somebody else answers for it", "place", place.String())
	}
	if reply.Frame == nil || !g.send(p, place.Epoch, ifindex, reply.Frame) {
		return
	}
	p.log.Debug("dhcp answered", "kind", reply.Kind.String(), "place", place.String())
	switch reply.Kind {
	case dhcp.Ack:
		p.acked(ipv4, place.Epoch)
	case dhcp.Grant, dhcp.Confirmed:
		p.acked(ipv6, place.Epoch)
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

// agentReport takes what replug-guest reports. Beside a cloud-init that leaves the pool
// it has applied the lesser part, and must not speak for it.
func (ps *ports) agentReport(ctx context.Context, id vnet.PortID, r vnet.GuestReport) error {
	if p := ps.get(id); p != nil && p.personality().CloudInit() {
		if r.Error != "" {
			p.warn("agent beside cloud-init reports a failure", "epoch", r.Epoch, "failure", excerpt(r.Error))
		}
		return nil
	}
	return ps.guestReport(ctx, id, r)
}

// guestReport takes what a guest reports of itself.
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
	var errs []error
	if a, ok := place.V4(); ok {
		errs = append(errs, p.sender.Send(ifindex, trap.Probe(a.Gateway, vnet.GatewayMAC, a.CA, mac)))
	}
	if a, ok := place.V6(); ok {
		errs = append(errs, p.sender.Send(ifindex, nd.Probe(place.VNI, a.CA, mac)))
	}
	return errors.Join(errs...)
}
