package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"replug/directory/vnet"
)

// A world is what survives the agent: the datapath's rows, taps, machines, the
// guests in them. An agent in it can be killed before or after any of its acts.
type world struct {
	t   *testing.T
	dir string

	mu        sync.Mutex
	rows      map[vnet.PortID]Row
	attached  map[int]vnet.PortID
	taps      map[string]int
	running   map[string]bool
	published map[vnet.PortID]vnet.Epoch
	docs      map[vnet.PortID]*vnet.Document
	loaded    map[vnet.VNI]bool
	full      error
	dies      bool // every machine, at once
	statuses  []vnet.Status
	acts      []string // in order
	guests    map[vnet.PortID]*guest

	countdown int // acts until the kill; 0: never
	kill      func()
	agent     *ports
	stop      context.CancelFunc
	session   uint64
}

// A guest asks for a lease when its link comes back after it has been down for
// as long as it takes to notice.
type guest struct {
	w        *world
	id       vnet.PortID
	ca       vnet.CA // what it calls itself
	link     bool
	downAt   time.Time
	notices  time.Duration // shortest cut that it sees
	asks     time.Duration // from link up to the lease
	deaf     bool          // never asks
	reports  bool          // runs an agent
	fails    bool          // reports failure
	bounced  int
	reported vnet.Epoch
}

var errKilled = errors.New("the agent was killed")

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, dir: t.TempDir(), rows: map[vnet.PortID]Row{}, attached: map[int]vnet.PortID{}, taps: map[string]int{},
		running: map[string]bool{}, published: map[vnet.PortID]vnet.Epoch{}, docs: map[vnet.PortID]*vnet.Document{},
		loaded: map[vnet.VNI]bool{red: true, blue: true}, guests: map[vnet.PortID]*guest{},
	}
	t.Cleanup(w.end)
	return w
}

// begin starts an agent over what is there.
func (w *world) begin() *ports {
	w.t.Helper()
	w.end()
	w.session++
	ctx, cancel := context.WithCancel(w.t.Context())
	w.mu.Lock()
	w.published, w.docs = map[vnet.PortID]vnet.Epoch{}, map[vnet.PortID]*vnet.Document{}
	w.kill, w.stop = cancel, cancel
	w.mu.Unlock()
	recs, err := newRecords(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	ps, err := newPorts(rooms{
		datapath: w, taps: (*worldTaps)(w), machines: (*worldMachines)(w), links: (*worldLinks)(w), docs: (*worldDocs)(w),
		prober: (*worldProber)(w), networks: (*worldNetworks)(w), records: worldRecords{w, recs}, rungs: newRungs(),
		metrics: NewMetrics(prometheus.NewRegistry()), mtu: 1500, report: w.report,
	}, log)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.agent = ps
	w.mu.Unlock()
	ps.begin(ctx)
	return ps
}

// end stops the agent, as the kernel would.
func (w *world) end() {
	w.mu.Lock()
	agent, stop := w.agent, w.stop
	w.agent = nil
	w.mu.Unlock()
	if agent != nil {
		stop()
		agent.wg.Wait()
	}
}

// act notes what the agent does to the world. It fails when the agent is dead:
// what a dead agent does, it doesn't do.
func (w *world) act(format string, args ...any) error {
	if w.countdown < 0 {
		return errKilled
	}
	w.acts = append(w.acts, fmt.Sprintf(format, args...))
	if w.countdown > 0 {
		if w.countdown--; w.countdown == 0 {
			w.countdown = -1
			w.kill()
		}
	}
	return nil
}

func (w *world) report(s vnet.Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.countdown < 0 {
		return
	}
	s.Session, s.Seq = w.session, uint64(len(w.statuses)+1)
	w.statuses = append(w.statuses, s)
}

// phases lists what was reported of an epoch, in order.
func (w *world) phases(e vnet.Epoch) []vnet.StatusPhase {
	w.mu.Lock()
	defer w.mu.Unlock()
	var got []vnet.StatusPhase
	for _, s := range w.statuses {
		if s.Epoch == e {
			got = append(got, s.Phase)
		}
	}
	return got
}

// last returns the newest status of an epoch.
func (w *world) last(e vnet.Epoch) vnet.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range slices.Backward(w.statuses) {
		if s.Epoch == e {
			return s
		}
	}
	return vnet.Status{}
}

// The datapath.

func (w *world) Rows() ([]Row, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var rows []Row
	for _, r := range w.rows {
		rows = append(rows, r)
	}
	return rows, nil
}

func (w *world) SetPort(r Row) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.Epoch < w.rows[r.Port].Epoch {
		w.t.Errorf("port %d goes back from epoch %s to %s", r.Port, w.rows[r.Port].Epoch, r.Epoch)
	}
	if w.docs[r.Port] != nil && w.published[r.Port] != r.Epoch {
		w.t.Errorf("port %d flips to epoch %s while the document of %s is served", r.Port, r.Epoch, w.published[r.Port])
	}
	if err := w.act("row %d %s vni %#x", r.Port, r.Epoch, r.VNI); err != nil {
		return err
	}
	w.rows[r.Port] = r
	return nil
}

func (w *world) SetTimed(id vnet.PortID, on bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.act("timed %d %t", id, on); err != nil {
		return err
	}
	r := w.rows[id]
	r.Timed = on
	w.rows[id] = r
	return nil
}

func (w *world) DeletePort(id vnet.PortID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.act("delete row %d", id); err != nil {
		return err
	}
	delete(w.rows, id)
	return nil
}

func (w *world) Attach(id vnet.PortID, ifindex int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.act("attach %d", id); err != nil {
		return err
	}
	w.attached[ifindex] = id
	return nil
}

func (w *world) Detach(id vnet.PortID, ifindex int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.act("detach %d", id); err != nil {
		return err
	}
	delete(w.attached, ifindex)
	return nil
}

func (w *world) Times(vnet.PortID) (Times, error) { return Times{}, nil }

// Everything else around a port.

type worldTaps world

func (f *worldTaps) Ensure(id vnet.PortID, _ int) (int, error) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	name := fmt.Sprintf("own%d", id)
	if w.taps[name] == 0 {
		if err := w.act("tap %d", id); err != nil {
			return 0, err
		}
		w.taps[name] = 700 + int(id)
	}
	return w.taps[name], nil
}

func (f *worldTaps) Find(name string) (int, error) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.taps[name] == 0 {
		return 0, errNoDevice
	}
	return w.taps[name], nil
}

func (f *worldTaps) Delete(id vnet.PortID) error {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.act("delete tap %d", id); err != nil {
		return err
	}
	delete(w.taps, fmt.Sprintf("own%d", id))
	return nil
}

type worldMachines world

func (f *worldMachines) Start(_ context.Context, in vnet.Intent, _ uint16) error {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.act("start %s", in.Machine.ID); err != nil {
		return err
	}
	w.running[in.Machine.ID] = !w.dies
	if g := w.guests[in.ID]; g != nil {
		g.link = true
		g.ask()
	}
	return nil
}

func (f *worldMachines) Stop(_ context.Context, m vnet.Machine) error {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.act("stop %s", m.ID); err != nil {
		return err
	}
	w.running[m.ID] = false
	return nil
}

func (f *worldMachines) Delete(_ context.Context, m vnet.Machine) error {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.act("delete machine %s", m.ID); err != nil {
		return err
	}
	delete(w.running, m.ID)
	return nil
}

func (f *worldMachines) Running(m vnet.Machine) bool {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running[m.ID]
}

type worldLinks world

type worldLink struct {
	w  *world
	id vnet.PortID
}

func (f *worldLinks) Open(_ context.Context, in vnet.Intent) (Link, error) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.guests[in.ID] == nil {
		return nil, errors.New("connection refused")
	}
	return worldLink{w, in.ID}, nil
}

func (worldLink) Close() error { return nil }

func (l worldLink) Set(_ context.Context, up bool) error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	g := l.w.guests[l.id]
	if g.link == up {
		return nil
	}
	if err := l.w.act("link %d %t", l.id, up); err != nil {
		return err
	}
	g.link = up
	if !up {
		g.downAt = time.Now()
		g.bounced++
	} else if time.Since(g.downAt) >= g.notices {
		g.ask()
	}
	return nil
}

// ask gets a lease of whatever row is in force by then. The world is locked.
func (g *guest) ask() {
	if g.deaf {
		return
	}
	time.AfterFunc(g.asks, func() {
		g.w.mu.Lock()
		row, ok := g.w.rows[g.id]
		agent := g.w.agent
		if ok && agent != nil && g.link {
			g.ca = row.CAs[0]
		}
		g.w.mu.Unlock()
		if ok && agent != nil {
			if p := agent.get(g.id); p != nil {
				p.acked(row.Epoch)
			}
		}
	})
}

type worldProber world

func (f *worldProber) Probe(_ int, _ vnet.MAC, place *vnet.Place) error {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, g := range w.guests {
		if row := w.rows[id]; row.Epoch == place.Epoch && row.CAs[0] == g.ca && g.link {
			agent := w.agent
			time.AfterFunc(100*time.Microsecond, func() {
				if p := agent.get(id); p != nil {
					p.answered(row.Epoch)
				}
			})
		}
	}
	return nil
}

type worldDocs world

func (f *worldDocs) Publish(id vnet.PortID, e vnet.Epoch, d *vnet.Document) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.act("publish %d %s", id, e) != nil {
		return
	}
	if row := w.rows[id]; row.Epoch != e {
		w.t.Errorf("published epoch %s while %s is in force", e, row.Epoch)
	}
	w.published[id], w.docs[id] = e, d
	if g := w.guests[id]; g != nil && g.reports && d != nil {
		g.read(e, d)
	}
}

// read reports on a document, once an epoch.
func (g *guest) read(e vnet.Epoch, d *vnet.Document) {
	kind := vnet.ReportFinal
	if d.Partial() {
		kind = vnet.ReportPartial
	}
	time.AfterFunc(30*time.Millisecond, func() {
		g.w.mu.Lock()
		agent, again := g.w.agent, g.reported == e
		can := g.link && g.ca == g.w.rows[g.id].CAs[0]
		g.w.mu.Unlock()
		if agent == nil || again {
			return
		}
		p := agent.get(g.id)
		r := vnet.GuestReport{Epoch: e, Kind: kind, OK: !g.fails, At: time.Now(), BootID: "b-17"}
		if !can || p == nil || p.offer(g.w.t.Context(), r) != nil {
			g.read(e, d) // later
			return
		}
		g.w.mu.Lock()
		g.reported = e
		g.w.mu.Unlock()
	})
}

func (f *worldDocs) Withdraw(id vnet.PortID) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.docs, id)
}

func (f *worldDocs) Forget(id vnet.PortID) {
	(*worldDocs)(f).Withdraw(id)
}

type worldRecords struct {
	w *world
	*records
}

func (r worldRecords) save(rec record) error {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if err := r.w.act("record %s", rec.Intent.Current.Epoch); err != nil {
		return err
	}
	return r.records.save(rec)
}

type worldNetworks world

func (f *worldNetworks) Synced(v vnet.VNI) (bool, error) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.loaded[v], w.full
}

func (f *worldNetworks) Use(vnet.PortID, ...*vnet.Place) error { return nil }

// Intents.

const (
	red  = vnet.VNI(0xabcdef)
	blue = vnet.VNI(0x123457)
)

func place(name vnet.Moniker, vni vnet.VNI, ca string, counter uint64) vnet.Place {
	return vnet.Place{
		Epoch: vnet.NewEpoch(3, counter), Tenant: "acme", Network: name, VNI: vni,
		Addrs:    []vnet.Addr{{CA: vnet.CA{Addr: netip.MustParseAddr(ca)}, Bits: 24, Gateway: netip.MustParseAddr("10.17.34.1")}},
		Document: &vnet.Document{Instance: "vm-23", Hostname: "web-" + string(name)},
	}
}

// intent is an attached port at its first place.
func intent() vnet.Intent {
	return vnet.Intent{
		Port: "p-17", ID: 23, Host: "h1", MAC: vnet.PortMAC(0x1a2b3c4d), PA: vnet.PA{Addr: netip.MustParseAddr("100.64.9.23")},
		VM: "vm-23", Tap: "tap23", Monitor: "/run/vm-23.sock", Current: place("red", red, "10.17.34.51", 7),
	}
}

// prepared has the way to blue in it, switched took it.
func prepared(in vnet.Intent) vnet.Intent {
	next := place("blue", blue, "10.17.34.62", uint64(in.Current.Epoch.Counter())+1)
	next.Swap, next.Confirm, next.Trigger = "s-5", vnet.ConfirmGuest, vnet.TriggerBounce
	in.Next = &next
	return in
}

func switched(in vnet.Intent) vnet.Intent {
	in.Current, in.Next = *in.Next, nil
	return in
}

// guestAt puts a guest behind the port, settled at a CA.
func (w *world) guestAt(in vnet.Intent, ca string) *guest {
	g := &guest{w: w, id: in.ID, link: true, notices: 5 * time.Millisecond, asks: 3 * time.Millisecond, reports: true}
	if ca != "" {
		g.ca = vnet.CA{Addr: netip.MustParseAddr(ca)}
	}
	w.guests[in.ID] = g
	if in.Tap != "" {
		w.taps[in.Tap] = 723
	}
	return g
}

// hanging links never answer.
type hanging struct{}

func (hanging) Open(ctx context.Context, _ vnet.Intent) (Link, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
