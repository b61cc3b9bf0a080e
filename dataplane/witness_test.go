package dataplane

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"replug/directory/ask"
	"replug/directory/vnet"
)

// A fakeWitness plays the datapath: what it is asked for, and copies on demand.
type fakeWitness struct {
	mu     sync.Mutex
	calls  []string
	news   chan struct{}
	take   func(Copy)
	stop   chan struct{}
	lost   uint64
	traced Traced
	sent   []byte
	flows  []ask.Flow
}

func (w *fakeWitness) note(format string, args ...any) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, fmt.Sprintf(format, args...))
	if w.news != nil {
		close(w.news)
		w.news = nil
	}
	return nil
}

// until waits for a call.
func (w *fakeWitness) until(call string) {
	for {
		w.mu.Lock()
		there, news := slices.Contains(w.calls, call), make(chan struct{})
		w.news = news
		w.mu.Unlock()
		if there {
			return
		}
		<-news
	}
}

func (w *fakeWitness) log() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.calls)
}

func (w *fakeWitness) TraceFromVM(id vnet.PortID, b []byte) (Traced, error) {
	w.sent = b
	return w.traced, w.note("trace from port %d", id)
}

func (w *fakeWitness) TraceFromWire(b []byte) (Traced, error) {
	w.sent = b
	return w.traced, w.note("trace from wire")
}

func (w *fakeWitness) SetCaptured(id vnet.PortID, on bool) error {
	return w.note("captured %d %v", id, on)
}
func (w *fakeWitness) WatchDrops(on bool) error { return w.note("watch %v", on) }

func (w *fakeWitness) Copies(take func(Copy)) (func() error, func(), error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	stop := make(chan struct{})
	w.take, w.stop = take, stop
	w.calls = append(w.calls, "read")
	return func() error { <-stop; return nil }, func() { close(stop) }, nil
}

func (w *fakeWitness) copy(c Copy) {
	w.mu.Lock()
	take := w.take
	w.mu.Unlock()
	take(c)
}

func (w *fakeWitness) CopiesLost() (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost, nil
}

func (w *fakeWitness) DropTotals() (map[string]uint64, error) {
	return map[string]uint64{"spoofed_ca": 19, "vlan": 0, "no_route": 3}, nil
}
func (w *fakeWitness) DropText(reason string) string { return "text of " + reason }
func (w *fakeWitness) Flows(id vnet.PortID) ([]ask.Flow, error) {
	return w.flows, w.note("flows %d", id)
}

// fakeHouse is the ports of a host.
type fakeHouse struct {
	mu   sync.Mutex
	all  []*port
	gone bool // its rules are
}

func (h *fakeHouse) find(ok func(*port) bool) *port {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.IndexFunc(h.all, ok); i >= 0 {
		return h.all[i]
	}
	return nil
}
func (h *fakeHouse) named(name string) *port {
	return h.find(func(p *port) bool { return p.name == name })
}
func (h *fakeHouse) get(id vnet.PortID) *port {
	return h.find(func(p *port) bool { return p.id == id })
}

func (h *fakeHouse) add(name string, id vnet.PortID, tenant string) *port {
	pl := vnet.Place{Epoch: vnet.NewEpoch(3, 7), Tenant: tenant, Network: "red", VNI: 0xa1b2c3, FlowLog: true, Addrs: []vnet.Addr{
		{CA: vnet.CA{Addr: netip.MustParseAddr("10.99.0.3")}, Bits: 24}, {CA: vnet.CA{Addr: netip.MustParseAddr("10.17.34.51")}, Bits: 24},
		{CA: vnet.CA{Addr: netip.MustParseAddr("fd17:3::33")}, Bits: 64}}}
	p := &port{id: id, name: name, place: &pl, intent: vnet.Intent{Port: name, ID: id, MAC: vnet.PortMAC(uint32(id) << 8), Host: "h7"}}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, p)
	return p
}

func (h *fakeHouse) remove(p *port) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = slices.DeleteFunc(h.all, func(o *port) bool { return o == p })
}

func newDiagnosed() (*diagnosis, *fakeWitness, *fakeHouse) {
	w, h := &fakeWitness{}, &fakeHouse{}
	h.add("acme.web-1", 23, "acme")
	h.add("acme.db-1", 45, "acme")
	rules := func(id uint32) (RuleName, bool) { return RuleName{0xa1b2c3, "web", "https"}, id == 77 }
	return newDiagnosis(w, h, rules, func(i int) string { return fmt.Sprint("dev", i) }, vnet.MAC{2, 0xee, 1, 2, 3, 4}, slog.New(slog.DiscardHandler)), w, h
}
