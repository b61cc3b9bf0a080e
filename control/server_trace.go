package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	pb "replug/control/controlpb"
	"replug/directory/ask"
	"replug/directory/frame"
	"replug/directory/pki"
	"replug/directory/store"
	"replug/directory/vnet"
)

// tracePort is the source port of a traced packet when none was asked for: of no
// service, so that the flow is a new one most likely.
const tracePort = 50123

func (a diagnosticsAPI) Trace(ctx context.Context, q *pb.TraceRequest) (*pb.TraceResponse, error) {
	d, err := a.open(ctx)
	if err != nil {
		return nil, err
	}
	defer d.leave()
	from, err := d.findNIC(ctx, q.Tenant, q.From)
	if err != nil {
		return nil, err
	}
	spec, err := d.specFrom(ctx, q)
	if err != nil {
		return nil, err
	}
	t, err := one[ask.Trace](ctx, d, from.Host, ask.KindTraceFromVM, ask.TraceFromVM{Port: from.Name, Spec: spec})
	if err != nil {
		return nil, err
	}
	d.learn(ctx, t.Port, t.To)
	r := &pb.TraceResponse{Hops: []*pb.TraceHop{d.hopTo(from.Host, "from_vm", &t)}}
	if t.Verdict == ask.ToWire {
		return r, d.traceWire(ctx, r, &t)
	}
	d.conclude(r, from.Host, &t)
	return r, nil
}

// traceWire goes on at the host that gets the frame. That it can't be asked is a
// part of the answer: how far the frame came is known.
func (d *diagnoser) traceWire(ctx context.Context, r *pb.TraceResponse, t *ask.Trace) error {
	host, err := d.hostOf(ctx, t.Mapping)
	if errors.Is(err, ErrMissing) {
		r.Delivered, r.Summary = true, "sent to "+d.place(t.Mapping)+": a VTEP, or a host that has left; from there on it is not Replug's"
		return nil
	}
	if err != nil {
		return err
	}
	next, err := one[ask.Trace](ctx, d, host, ask.KindTraceFromWire, ask.TraceFromWire{Frame: t.Frame})
	if err != nil {
		r.Summary = fmt.Sprintf("sent to host %s, which can't be asked: %v", host, err)
		return nil
	}
	d.learn(ctx, next.To)
	r.Hops = append(r.Hops, d.hopTo(host, "from_wire", &next))
	d.conclude(r, host, &next)
	return nil
}

// hostOf returns the host that a mapping leads to; it returns [ErrMissing].
func (d *diagnoser) hostOf(ctx context.Context, m *ask.Mapping) (string, error) {
	if m == nil {
		return "", ErrMissing
	}
	rows, _, err := store.List[vnet.HostInfo](ctx, d.store, store.Hosts)
	if err != nil {
		return "", err
	}
	for _, h := range rows {
		if h.Value.PAPrefix.Contains(m.PA) || h.Value.Address == m.PA {
			return h.Value.Name, nil
		}
	}
	return "", ErrMissing
}

// conclude says in one line what becomes of the frame.
func (d *diagnoser) conclude(r *pb.TraceResponse, host string, t *ask.Trace) {
	r.Delivered = t.Verdict != ask.Dropped && t.Verdict != ask.Passed
	r.Summary = fmt.Sprintf("%s, on host %s", d.verdict(t), host)
}

// specFrom reads what frame is to be traced.
func (d *diagnoser) specFrom(ctx context.Context, q *pb.TraceRequest) (frame.Spec, error) {
	s := frame.Spec{SrcPort: uint16(q.FromPort), DstPort: uint16(q.Port), Size: int(q.Size)}
	var err error
	if q.Protocol == "" {
		q.Protocol = "icmp"
	}
	if s.Protocol, err = vnet.ParseProtocol(q.Protocol); err != nil || s.Protocol == vnet.AnyProtocol {
		return s, fmt.Errorf("%w protocol %q: %w", ErrInvalid, q.Protocol, vnet.ErrProtocol)
	}
	if s.Protocol.HasPorts() != (q.Port != 0) || q.Port > 0xffff || q.FromPort > 0xffff {
		return s, fmt.Errorf("%w port %d: TCP, UDP and SCTP need one of 1 to 65535, others have none", ErrInvalid, q.Port)
	}
	if s.Protocol.HasPorts() && s.SrcPort == 0 {
		s.SrcPort = tracePort
	}
	if q.Flags == "" {
		q.Flags = "syn"
	}
	if s.Flags, err = frame.ParseFlags(q.Flags); err != nil {
		return s, fmt.Errorf("%w flags: %w", ErrInvalid, err)
	}
	if q.IcmpType != nil {
		if *q.IcmpType > 0xff {
			return s, fmt.Errorf("%w ICMP type %d: 0 to 255", ErrInvalid, *q.IcmpType)
		}
		kind := uint8(*q.IcmpType)
		s.ICMPType = &kind
	}
	if q.FromIp != "" {
		if s.Src, err = netip.ParseAddr(q.FromIp); err != nil {
			return s, fmt.Errorf("%w address %q that it is from", ErrInvalid, q.FromIp)
		}
	}
	s.Dst, err = d.addressOf(ctx, q.Tenant, q.To, s.Src)
	return s, err
}

// addressOf reads an address, or takes a VM's or port's: of the family of src, if
// there is one.
func (d *diagnoser) addressOf(ctx context.Context, tenant, to string, src netip.Addr) (netip.Addr, error) {
	if a, err := netip.ParseAddr(to); err == nil {
		return a.Unmap(), nil
	}
	p, err := d.findNIC(ctx, tenant, to)
	if err != nil {
		return netip.Addr{}, err
	}
	in, err := d.networks.GetIntent(ctx, p.Name)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range in.Value.Current.Addrs {
		if !src.IsValid() || a.CA.Is4() == src.Is4() {
			return a.CA.Addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("port %q: %w: it has no address that %s could send to", p.Name, ErrNotSo, src)
}

// underlay reports whether the caller may see what is below the virtual networks.
func (d *diagnoser) underlay() bool { return d.who.Kind == pki.Operator }
