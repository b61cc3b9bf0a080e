package bpf

import (
	"errors"
	"fmt"
	"time"
)

// Budgets are what a port may take of its host: buckets of tokens, and quotas of
// flows. What a bucket says hangs on the clock, so here the model's stands still: a
// token costs so long, and a bucket's edge is so far from any number of them, that
// the seconds until both are filled again change no verdict.

// A modelBucket is one of the buckets that each port has, by enum bucket.
type modelBucket struct {
	port uint16
	kind uint32
}

type modelBudgets struct {
	now      time.Duration                 // when all was filled
	due      map[modelBucket]time.Duration // when the next token is due
	spent    map[modelBucket]time.Duration // what was due before the frame at hand
	limits   map[uint16]datapathLimitsRow
	quotas   map[uint16]*datapathFlowBudget
	shares   map[uint32]*datapathFlowBudget // by tenant
	orphaned bool                           // no agent counts flows
	untold   int                            // packets too big whose sender had been told too often
}

const (
	flowQuota  = 900 // of a port that has none of its own
	batchSlack = 7 * time.Second
	maxUnsure  = 10 // verdicts that a slow machine leaves undecided: more, and nothing is compared
)

// tokenOf is how long a token of a bucket costs: each its own time, twice the slack
// and more. The words about big packets are answers, too.
func tokenOf(kind uint32) time.Duration {
	if kind == bucketTooBig {
		kind = bucketAnswer
	}
	return time.Duration(15+kind) * time.Second
}

// burstOf is how far a bucket may run ahead: a number of tokens that some frames of
// a batch find spent, and half of one.
func burstOf(kind uint32) time.Duration {
	tokens := map[uint32]time.Duration{bucketTrap: 24, bucketUnresolved: 6, bucketAnswer: 30, bucketTooBig: 30,
		bucketFromBytes: 800_000, bucketFromPackets: 2500, bucketToBytes: 600_000, bucketToPackets: 2000}[kind]
	return tokens*tokenOf(kind) + tokenOf(kind)/2
}

// loadBudgeted is Load with buckets that bite.
func loadBudgeted(o Options) (*Datapath, error) {
	spec, err := specOf(o)
	if err != nil {
		return nil, err
	}
	s, err := o.settings()
	if err != nil {
		return nil, err
	}
	per := func(kind uint32) (interval, burst uint64) { return uint64(tokenOf(kind)), uint64(burstOf(kind)) }
	s.TrapInterval, s.TrapBurst = per(bucketTrap)
	s.UnresolvedInterval, s.UnresolvedBurst = per(bucketUnresolved)
	s.AnswerInterval, s.AnswerBurst = per(bucketAnswer)
	if err := spec.Variables[datapathVarConfig].Set(s); err != nil {
		return nil, err
	}
	if err := makePinDir(o.PinDir); err != nil {
		return nil, err
	}
	return load(spec, o.PinDir)
}

// spend is GCRA: whether the bucket may run as far ahead as it does, and then n tokens further.
func (m *model) spend(p *modelPort, kind uint32, n int) bool {
	k := modelBucket{p.id, kind}
	due := max(m.due[k], m.now)
	if due-m.now > burstOf(kind) {
		return false
	}
	if _, again := m.spent[k]; !again {
		m.spent[k] = m.due[k]
	}
	m.due[k] = due + time.Duration(n)*tokenOf(kind)
	return true
}

// keepsFrom and keepsTo: whether a port keeps to its rates with a packet.
func (m *model) keepsFrom(j *judged, p *modelPort) bool {
	return m.keeps(j, p, m.limits[p.id].From, bucketFromBytes, bucketFromPackets)
}

func (m *model) keepsTo(j *judged, p *modelPort) bool {
	return m.keeps(j, p, m.limits[p.id].To, bucketToBytes, bucketToPackets)
}

func (m *model) keeps(j *judged, p *modelPort, r datapathRate, bytes, packets uint32) bool {
	segments, header := 1, 8
	if j.proto == protoTCP {
		header = 20 + j.optionsLen
	}
	if j.gso > 0 && j.payload > header {
		segments = (j.payload - header + j.gso - 1) / j.gso
	}
	onWire := len(j.frame) + (segments-1)*(14+j.header+header)
	return (r.PacketCost == 0 || m.spend(p, packets, segments)) && (r.ByteCost == 0 || m.spend(p, bytes, onWire))
}

// afford takes a flow off what its port and its tenant may have; a service's has two rows.
func (m *model) afford(j *judged, p *modelPort, inbound bool) bool {
	own, all := m.quotas[p.id], m.shares[p.Tenant]
	if !m.orphaned && (own.Rows >= or(own.Quota, flowQuota) || all != nil && all.Rows >= all.Quota) {
		return false
	}
	own.Rows++
	if all != nil {
		all.Rows++
	}
	if all != nil && j.natted == fService && !inbound {
		all.Rows++
	}
	return true
}

// bound gives the ports of a twin their limits and tenants: one has none of either.
func (w *twin) bound(ruled, router member) {
	w.t.Helper()
	bytes := func(r *datapathRate, kind uint32) {
		r.ByteCost, r.ByteBurst = uint64(tokenOf(kind))<<16, uint64(burstOf(kind))
	}
	packets := func(r *datapathRate, kind uint32) {
		r.PacketCost, r.PacketBurst = uint64(tokenOf(kind))<<16, uint64(burstOf(kind))
	}
	m := w.model
	m.limits, m.quotas, m.shares = map[uint16]datapathLimitsRow{}, map[uint16]*datapathFlowBudget{}, map[uint32]*datapathFlowBudget{}
	for id, p := range m.ports {
		var l datapathLimitsRow
		if id == router.id {
			bytes(&l.From, bucketFromBytes)
			packets(&l.To, bucketToPackets)
		}
		if id == ruled.id {
			packets(&l.From, bucketFromPackets)
			bytes(&l.To, bucketToBytes)
			bytes(&l.From, bucketFromBytes)
			packets(&l.To, bucketToPackets)
		}
		if l != (datapathLimitsRow{}) {
			w.must(errors.Join(w.dp.objs.PortLimits.Put(uint32(id), l), w.dp.setFlags(id, limited, 0)))
			m.limits[id] = l
		}
		if p.VNI == red {
			p.Tenant = 71
			w.must(w.dp.SetPort(id, p.Port))
		}
	}
}

// level is how far a budget has been spent when a batch begins, in eighths: another
// each time, and not at all in every third.
func (w *twin) level(port uint16, what uint32) uint32 {
	return (uint32(w.fills)*4 + uint32(port) + what*5) % 13 % 9
}

// fill gives the buckets and quotas new levels, from all to the last one. Now and
// then no agent is there to count flows, so that no quota binds though each is used up.
func (w *twin) fill() {
	w.t.Helper()
	m := w.model
	w.fills++
	m.now, m.due, m.spent, m.orphaned = Now(), map[modelBucket]time.Duration{}, map[modelBucket]time.Duration{}, w.fills%4 == 0
	for id, p := range m.ports {
		for kind := range uint32(bucketTooBig + 1) {
			due := time.Duration(0)
			if n := w.level(id, kind); n > 0 {
				due = m.now + burstOf(kind)/tokenOf(kind)*time.Duration(n)/8*tokenOf(kind)
			}
			m.due[modelBucket{id, kind}] = due
			w.setDue(id, kind, due)
		}
		part, share := w.level(id, 8), w.level(23, 9)
		if m.orphaned {
			part, share = 8, 8
		}
		own := datapathFlowBudget{Quota: uint32(w.fills+int(id)) % 3 * 800}
		own.Rows = or(own.Quota, flowQuota) * part / 8
		m.quotas[id] = &own
		w.must(w.dp.objs.FlowBudgets.Put(uint32(id), own))
		if p.Tenant != 0 {
			m.shares[p.Tenant] = &datapathFlowBudget{Quota: 2000, Rows: 2000 * share / 8}
			w.must(w.dp.objs.TenantFlows.Put(p.Tenant, m.shares[p.Tenant]))
		}
	}
	w.sweptBy(!m.orphaned)
}

// sweptBy an agent just now; or by none for so long that no quota binds: for a little
// more than a minute, or for so many ticks that half of the clock is less.
func (w *twin) sweptBy(agent bool) {
	w.t.Helper()
	clock, err := w.dp.clock(true)
	w.must(err)
	if agent {
		return
	}
	var last uint64
	w.must(w.dp.objs.Swept.Lookup(uint32(0), &last))
	ago := uint64(datapathFlowTimeoutSWEEP_STALE) * clock.second
	if w.fills%8 == 0 {
		ago = 1<<31 + 1000
	}
	w.must(w.dp.objs.Swept.Put(uint32(0), last-ago))
}

// compareSpent compares what the frame at hand has spent; "" if it is what the model
// says. A bucket that was empty is as late as the frame.
func (w *twin) compareSpent() string {
	for k := range w.model.spent {
		if wrong := w.compareBucket(k); wrong != "" {
			return wrong
		}
	}
	return ""
}

func (w *twin) compareBucket(k modelBucket) string {
	got, want := w.due(k.port, k.kind), w.model.due[k]
	if late := got - want; late < 0 || late > Now()-w.model.now {
		return fmt.Sprintf("bucket %d of port %d: the next token of %v is due %v later than the model says", k.kind, k.port, tokenOf(k.kind), late)
	}
	return ""
}

// judgedTwice: what the driver's hook has judged to its end goes through from_wire
// once more, with the same tokens.
func (w *twin) judgedTwice(verdict uint32) string {
	if verdict == xdpPass {
		return ""
	}
	wrong := w.compareSpent()
	for k, due := range w.model.spent {
		w.setDue(k.port, k.kind, due)
	}
	return wrong
}

// compareBudgets compares all that has been spent since all was filled.
func (w *twin) compareBudgets() string {
	for k := range w.model.due {
		if wrong := w.compareBucket(k); wrong != "" {
			return wrong
		}
	}
	var got datapathFlowBudget
	for id, want := range w.model.quotas {
		w.must(w.dp.objs.FlowBudgets.Lookup(uint32(id), &got))
		if got != *want {
			return fmt.Sprintf("port %d has %d of %d flows, the model says %d", id, got.Rows, got.Quota, want.Rows)
		}
	}
	for tenant, want := range w.model.shares {
		w.must(w.dp.objs.TenantFlows.Lookup(tenant, &got))
		if got != *want {
			return fmt.Sprintf("tenant %d has %d of %d flows, the model says %d", tenant, got.Rows, got.Quota, want.Rows)
		}
	}
	return ""
}

// late: so much time has passed since all was filled that the clock may have decided.
func (w *twin) late() bool { return Now()-w.model.now > batchSlack }

// forget begins a batch, at the end of another one if what that has spent can be compared.
func (f *fuzzer) forget(compare bool) {
	f.t.Helper()
	for i, w := range f.twins {
		if wrong := w.compareBudgets(); compare && wrong != "" {
			f.t.Errorf("host %d, after a batch: %s", i, wrong)
		}
		w.forget()
	}
}
