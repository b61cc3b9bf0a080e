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

	mu          sync.Mutex
	rows        map[vnet.PortID]Row
	attached    map[int]vnet.PortID
	taps        map[string]int
	running     map[string]bool
	saved       map[string]bool
	slept       map[vnet.PortID]bool // its document says so
	published   map[vnet.PortID]vnet.Epoch
	docs        map[vnet.PortID]*vnet.Document
	loaded      map[vnet.VNI]bool
	groups      *groups
	rules       map[vnet.PortID]*Ruleset
	staged      map[vnet.PortID]*Ruleset
	released    []vnet.Epoch // whose ports won't go back
	room        int          // for staged rules of a port
	limits      map[vnet.PortID]vnet.Limits
	connections []Connection
	connected   vnet.Epoch    // in which they are
	way         Way           // to everybody
	slow        time.Duration // to list them
	full        error
	dies        bool // every machine, at once
	unreadable  bool // every saved state: QEMU ends with it
	unmonitored bool // every monitor is gone
	statuses    []vnet.Status
	acts        []string // in order
	guests      map[vnet.PortID]*guest
	times       Times                  // of any port
	told        []said6                // by Router Advertisements, in order
	opened      map[vnet.PortID]uint64 // the session that has last dialled its agent
	killed      bool                   // an agent died: the next one may speak before it has put the link up

	furnish func(*rooms) // puts real things in the place of fakes
	said    io.Writer    // takes the agent's log

	quiet     bool // acts are not noted
	countdown int  // acts until the kill; 0: never
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
	ca6      vnet.CA // by DHCPv6
	deaf6    bool    // has no DHCPv6 client
	link     bool
	downAt   time.Time
	notices  time.Duration // shortest cut that it sees
	notices6 time.Duration // and that its DHCPv6 client sees
	dark     time.Duration // its last cut
	asks     time.Duration // from link up to the lease
	checks   time.Duration // from the lease to the use of its address
	deaf     bool          // never asks when its link comes back
	polls    bool          // waits for its document, and asks when it is told to
	works    bool          // has much to do from the cut on
	heard    bool          // the service has heard it ask
	plugs    bool          // asks when its NIC is put in
	hears    bool          // its agent listens to the second channel
	gone     bool          // it has stopped listening by the time it is told
	reports  bool          // runs an agent
	fails    bool          // reports failure
	boots    bool          // nobody has its NIC yet
	monitor  func()        // says that it was reset
	bounced  int
	reported vnet.Epoch
}

var errKilled = errors.New("the agent was killed")

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, dir: t.TempDir(), rows: map[vnet.PortID]Row{}, attached: map[int]vnet.PortID{}, taps: map[string]int{},
		opened: map[vnet.PortID]uint64{}, running: map[string]bool{}, saved: map[string]bool{}, slept: map[vnet.PortID]bool{}, published: map[vnet.PortID]vnet.Epoch{}, docs: map[vnet.PortID]*vnet.Document{},
		loaded: map[vnet.VNI]bool{red: true, blue: true}, way: Way{Ifindex: 55}, guests: map[vnet.PortID]*guest{},
		groups: newGroups(), rules: map[vnet.PortID]*Ruleset{}, staged: map[vnet.PortID]*Ruleset{}, room: 5, limits: map[vnet.PortID]vnet.Limits{},
	}
	for vni := range w.loaded {
		w.groups.loaded(vni, func(string) bool { return true })
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
	said := w.said
	switch {
	case said != nil:
	case testing.Verbose():
		said = w.t.Output()
	default:
		said = io.Discard
	}
	log := slog.New(slog.NewTextHandler(said, nil))
	accounts := newAccounts(prometheus.NewRegistry())
	accounts.tally = w.Tally
	r := rooms{
		accounts: accounts,
		datapath: w, taps: (*worldTaps)(w), machines: (*worldMachines)(w), links: (*worldLinks)(w), docs: (*worldDocs)(w),
		prober: (*worldProber)(w), resetter: (*worldResetter)(w), router: (*worldRouter)(w), networks: (*worldNetworks)(w), agents: (*worldAgents)(w), records: worldRecords{w, recs}, rungs: newRungs(),
		metrics: NewMetrics(prometheus.NewRegistry()), mtu: 1500, report: w.report,
	}
	if w.furnish != nil {
		w.furnish(&r)
	}
	ps, err := newPorts(r, log)
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
	if !w.quiet {
		w.acts = append(w.acts, fmt.Sprintf(format, args...))
	}
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
		r.Rules = nil // the datapath has them by number, not by pointer
		rows = append(rows, r)
	}
	return rows, nil
}

// first is what the guest of a row calls itself.
func (r Row) first() vnet.CA { return vnet.CA{Addr: r.CAs[0].Addr()} }

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
	if r.Rules == nil && r.VNI != w.rows[r.Port].VNI {
		w.t.Errorf("port %d comes into %d under the rules of %d", r.Port, r.VNI, w.rows[r.Port].VNI)
	}
	w.rows[r.Port] = r
	delete(w.staged, r.Port)
	if r.Rules != nil {
		w.rules[r.Port] = r.Rules
	}
	return nil
}

func (w *world) ReleaseRules(id vnet.PortID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.released = append(w.released, w.rows[id].Epoch)
}

func (w *world) StageRules(id vnet.PortID, r *Ruleset) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case r == nil || r.Open:
		delete(w.staged, id)
		return nil
	case len(r.In)+len(r.Out) > w.room:
		return errFullForTest
	}
	w.staged[id] = r
	return nil
}

func (w *world) SetRules(id vnet.PortID, r *Ruleset) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.rows[id].Port == 0 {
		w.t.Errorf("rules for port %d, which isn't there", id)
	}
	if err := w.act("rules %d in %d out %d", id, len(r.In), len(r.Out)); err != nil {
		return err
	}
	w.rules[id] = r
	return nil
}

func (w *world) Rejudge(id vnet.PortID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.act("rejudge %d", id)
}

func (w *world) SetLimits(id vnet.PortID, l vnet.Limits) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.act("limits %d from %d", id, l.From.Bits); err != nil {
		return err
	}
	w.limits[id] = l
	return nil
}

func (w *world) ServiceOf(int, netip.AddrPort, netip.AddrPort) (netip.AddrPort, bool) {
	return netip.AddrPort{}, false
}

func (w *world) Connections(_ vnet.PortID, e vnet.Epoch) ([]Connection, error) {
	w.mu.Lock()
	slow := w.slow
	w.mu.Unlock()
	time.Sleep(slow)
	w.mu.Lock()
	defer w.mu.Unlock()
	if e != w.connected {
		return nil, nil
	}
	return slices.Clone(w.connections), nil
}

func (w *world) SetDraining(id vnet.PortID, on bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.act("draining %d %t", id, on); err != nil {
		return err
	}
	r := w.rows[id]
	r.Draining = on
	w.rows[id] = r
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

func (w *world) Tally(vnet.PortID) (Tally, error) { return Tally{}, nil }

func (w *world) Times(vnet.PortID) (Times, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.times, nil
}

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
	in.Current.Undoable = true
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
