package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"replug/control/compute"
	pb "replug/control/controlpb"
	"replug/control/network"
	"replug/directory/ask"
	"replug/directory/pki"
	"replug/directory/server"
)

type diagnosticsAPI struct {
	pb.UnimplementedDiagnosticsServer
	s *Server
}

// A diagnoser puts a caller's questions to hosts.
type diagnoser struct {
	*caller
	leave func() // to be called when all is answered

	mu   sync.Mutex
	vmOf map[portOf]string // names
}

// A portOf is a port as long as it is a tenant's.
type portOf struct{ name, tenant string }

// open admits one more question, unless the caller has too many open.
func (a diagnosticsAPI) open(ctx context.Context) (*diagnoser, error) {
	c := callerOf(ctx)
	leave, err := a.s.looks.enter(c)
	return &diagnoser{caller: c, leave: leave, vmOf: make(map[portOf]string)}, err
}

// looks counts the questions that are open, by caller: one tenant must not keep
// the hosts from answering others.
type looks struct {
	mu   sync.Mutex
	open map[string]int
}

// Questions that one caller may have open.
const (
	maxTenantLooks   = 8
	maxOperatorLooks = 64
)

func (l *looks) enter(c *caller) (leave func(), err error) {
	most := maxTenantLooks
	if c.who.Kind == pki.Operator {
		most = maxOperatorLooks
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open = make(map[string]int)
	}
	if l.open[c.scope()] >= most {
		return nil, fmt.Errorf("%w: %s %s has %d; end some of them", server.ErrBusy, c.who.Kind, c.who.Name, most)
	}
	l.open[c.scope()]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.open[c.scope()]--; l.open[c.scope()] == 0 {
			delete(l.open, c.scope())
		}
	}, nil
}

// each puts a question to a host and hands on each answer.
func each[A any](ctx context.Context, d *diagnoser, host, kind string, q any, take func(A) error) error {
	b, err := json.Marshal(q)
	if err != nil {
		return err
	}
	return d.s.dir.Ask(ctx, host, kind, b, func(b []byte) error {
		var a A
		if err := json.Unmarshal(b, &a); err != nil {
			return fmt.Errorf("%w: host %s answers what this server can't read: is its agent newer? %w", server.ErrRefused, host, err)
		}
		return take(a)
	})
}

// one puts a question to a host that has one answer.
func one[A any](ctx context.Context, d *diagnoser, host, kind string, q any) (a A, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = each(ctx, d, host, kind, q, func(v A) error {
		a = v
		return nil
	})
	return a, err
}

// findNIC returns the port that a caller means by the name of a VM or a port.
func (c *caller) findNIC(ctx context.Context, tenant, name string) (network.Port, error) {
	vm, err := c.findVM(ctx, tenant, name)
	if err == nil {
		row, err := c.networks.GetPort(ctx, vm.Value.Port)
		return row.Value, err
	}
	if !errors.Is(err, compute.ErrNotFound) {
		return network.Port{}, err
	}
	p, err := c.findPort(ctx, tenant, name)
	if errors.Is(err, network.ErrNotFound) {
		return p, fmt.Errorf("%q: %w: neither a VM nor a port of tenant %q; list those there are", name, ErrMissing, tenant)
	}
	return p, err
}

func (a diagnosticsAPI) Capture(q *pb.CaptureRequest, ss grpc.ServerStreamingServer[pb.CaptureChunk]) error {
	d, err := a.open(ss.Context())
	if err != nil {
		return err
	}
	defer d.leave()
	want, err := captureFrom(q)
	if err != nil {
		return err
	}
	p, err := d.findNIC(ss.Context(), q.Tenant, q.Port)
	if err != nil {
		return err
	}
	want.Port, want.Inner = p.Name, d.who.Kind != pki.Operator
	return each(ss.Context(), d, p.Host, ask.KindCapture, want, func(c ask.Captured) error {
		return ss.Send(&pb.CaptureChunk{Data: c.Data, Frames: c.Frames, Lost: c.Lost})
	})
}

func captureFrom(q *pb.CaptureRequest) (ask.Capture, error) {
	out := ask.Capture{Count: int(q.Count), Snap: int(q.Snap)}
	for _, name := range q.Points {
		if !slices.Contains(ask.Points, ask.Point(name)) {
			return out, fmt.Errorf("%w point %q: one of %v", ErrInvalid, name, ask.Points)
		}
		out.Points = append(out.Points, ask.Point(name))
	}
	if q.Count < 0 || q.Snap < 0 || q.Snap > ask.MaxSnap {
		return out, fmt.Errorf("%w capture of %d frames, %d bytes each: at least 0, and at most %d bytes", ErrInvalid, q.Count, q.Snap, ask.MaxSnap)
	}
	return out, nil
}

func (a diagnosticsAPI) ListFlows(q *pb.ListFlowsRequest, ss grpc.ServerStreamingServer[pb.ListFlowsResponse]) error {
	d, err := a.open(ss.Context())
	if err != nil {
		return err
	}
	defer d.leave()
	p, err := d.findNIC(ss.Context(), q.Tenant, q.Port)
	if err != nil {
		return err
	}
	return each(ss.Context(), d, p.Host, ask.KindFlows, ask.Flows{Port: p.Name}, func(flows []ask.Flow) error {
		return ss.Send(flowsTo(flows))
	})
}
