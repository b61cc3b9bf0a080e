package dataplane

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"replug/dataplane/flowlog"
	"replug/directory/vnet"
)

// FlowEvents are what the datapath tells of the flows of ports whose rows are
// Logged.
type FlowEvents interface {
	// FlowEvents reads the ring until stop is called; then run returns nil.
	FlowEvents(take func(FlowEvent)) (run func() error, stop func(), err error)
	// FlowEventsLost counts the events for which the ring was too full.
	FlowEventsLost() (uint64, error)
}

// A FlowEvent is the start or end of a flow, or that it was denied.
type FlowEvent struct {
	Kind           string // of package flowlog
	Port           vnet.PortID
	Epoch          vnet.Epoch
	Protocol       vnet.Protocol
	Local, Remote  netip.AddrPort
	Inbound        bool
	Rule           int64
	Drop           string // reason of a denial
	At             time.Time
	Lasted         time.Duration // at the end
	Packets, Bytes uint64        // at the end
}

// Why a record is lost.
const (
	lostRing  = "ring"  // the datapath tells faster than the agent reads
	lostPlace = "place" // the port has left that place, and nobody knows whose flow it was
	lostDisk  = "disk"
)

// flowLogger writes the flow logs of the networks that want one.
type flowLogger struct {
	events  FlowEvents
	ports   residents
	rules   func(id int64) string
	lost    *prometheus.CounterVec
	written prometheus.Counter
	log     *slog.Logger

	mu     sync.Mutex
	out    *flowlog.Log
	places map[vnet.PortID][]wasAt // the newest last
	names  map[int64]string        // of rules that let flows begin: the rule may be gone when they end
	missed uint64                  // of the ring, counted so far
	failed bool                    // the last write did: it is said once
	logs   bool                    // some port here is logged
	closed bool
}

// wasAt is where a port is or was.
type wasAt struct {
	name  string
	place *vnet.Place
}

func newFlowLogger(e FlowEvents, ps residents, rules func(int64) string, dir string, r prometheus.Registerer, log *slog.Logger) (*flowLogger, error) {
	out, err := flowlog.Open(dir, flowlog.Defaults)
	if err != nil {
		return nil, err
	}
	l := &flowLogger{events: e, ports: ps, rules: rules, log: log, out: out, places: map[vnet.PortID][]wasAt{}, names: map[int64]string{},
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "replug_flow_records_lost_total",
			Help: "Flow log records that were not written: the ring was full, the disk refused, or the port had left its place."}, []string{"reason"}),
		written: prometheus.NewCounter(prometheus.CounterOpts{Name: "replug_flow_records_total", Help: "Flow log records written."}),
	}
	for _, reason := range []string{lostRing, lostPlace, lostDisk} {
		l.lost.WithLabelValues(reason)
	}
	r.MustRegister(l.lost, l.written)
	if l.missed, err = e.FlowEventsLost(); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return l, nil
}

// run writes until ctx ends.
func (l *flowLogger) run(ctx context.Context) error {
	run, stop, err := l.events.FlowEvents(l.take)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, stop)()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.tidy(ctx)
	}()
	err = run()
	<-done
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return errors.Join(err, l.out.Close())
}

// tidy keeps the files abreast.
func (l *flowLogger) tidy(ctx context.Context) {
	second, hour := time.NewTicker(time.Second), time.NewTicker(time.Hour)
	defer second.Stop()
	defer hour.Stop()
	for {
		select {
		case <-second.C:
			l.flush()
		case now := <-hour.C:
			l.mu.Lock()
			err := l.out.Expire(now)
			l.mu.Unlock()
			if err != nil {
				l.log.Warn("old flow logs stay", "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

func (l *flowLogger) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.out.Flush(); err != nil {
		l.log.Error("flow records of a second are lost", "err", err)
	}
	l.lost.WithLabelValues(lostDisk).Add(float64(l.out.Lost()))
	if n, err := l.events.FlowEventsLost(); err == nil && n > l.missed {
		l.lost.WithLabelValues(lostRing).Add(float64(n - l.missed))
		l.missed = n
	}
}

// take writes one event down.
func (l *flowLogger) take(e FlowEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	at, ok := l.at(e.Port, e.Epoch)
	// Flows of all ports end; only those of logged ports tell that they begin.
	l.logs = l.logs || e.Kind != flowlog.End || ok && at.place.FlowLog
	switch {
	case !ok && !l.logs:
		return
	case !ok:
		l.lost.WithLabelValues(lostPlace).Inc()
		return
	case !at.place.FlowLog:
		return
	}
	err := l.out.Write(l.record(&e, at))
	if err != nil {
		l.lost.WithLabelValues(lostDisk).Add(float64(l.out.Lost()))
		if !l.failed {
			l.log.Error("flow records are lost until this is mended", "err", err)
		}
	} else {
		l.written.Inc()
	}
	l.failed = err != nil
}

func (l *flowLogger) record(e *FlowEvent, at wasAt) *flowlog.Record {
	r := &flowlog.Record{
		Time: e.At.UTC(), Event: e.Kind, Tenant: at.place.Tenant, Network: at.place.Network, VNI: at.place.VNI, Port: at.name,
		Direction: vnet.Out, Protocol: e.Protocol, Local: e.Local, Remote: e.Remote, Verdict: vnet.Allow,
		Rule: l.rule(e), Reason: e.Drop, Seconds: e.Lasted.Seconds(), Packets: e.Packets, Bytes: e.Bytes,
	}
	if e.Inbound {
		r.Direction = vnet.In
	}
	if e.Kind == flowlog.Denied {
		r.Verdict = vnet.Deny
	}
	return r
}

// rule names what decided, as it was called when it did.
func (l *flowLogger) rule(e *FlowEvent) string {
	const most = 10000
	if e.Kind == flowlog.End {
		if name, ok := l.names[e.Rule]; ok {
			return name
		}
		return l.rules(e.Rule)
	}
	if _, known := l.names[e.Rule]; !known && len(l.names) >= most {
		clear(l.names)
	}
	l.names[e.Rule] = l.rules(e.Rule)
	return l.names[e.Rule]
}

// at tells where a port was in an epoch: a flow that ends after its port has moved
// belongs to the network, and the tenant, that it had before.
func (l *flowLogger) at(id vnet.PortID, epoch vnet.Epoch) (wasAt, bool) {
	const most = 4 // places remembered of a port
	known := l.places[id]
	if p := l.ports.get(id); p != nil {
		if r, ok := p.resident(); ok && (len(known) == 0 || known[len(known)-1].place != r.place) {
			known = append(known, wasAt{r.name, r.place})
			l.places[id] = known[max(0, len(known)-most):]
		}
	}
	for i := len(known) - 1; i >= 0; i-- {
		if known[i].place.Epoch == epoch {
			return known[i], true
		}
	}
	return wasAt{}, false
}
