package swap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/store"
	"replug/directory/vnet"
)

// objects are the other managers of these tests: two networks with the same range
// on purpose, a row a port that says where it is for good, a row a CA that says who
// has it.
type objects struct {
	store  *store.Store
	refuse error // of Switch
	joins  int   // rows that Join writes
}

var testNetworks = map[vnet.Moniker]vnet.VNI{"pool": 0x5c6d7e, "red": 0xa1b2c3, "blue": 0x1d2e3f}

var (
	errUnknownNetwork = errors.New("test: no such network")
	errTaken          = errors.New("test: the address is taken")
)

type portRow struct {
	Place  vnet.Place
	Doomed bool
}

type caRow struct {
	Port string
	As   string // used, held, resting
}

func testCA(s string) vnet.CA { return vnet.CA{Addr: netip.MustParseAddr(s)} }

func testPlace(n vnet.Moniker, ca string) vnet.Place {
	return vnet.Place{Tenant: "acme", Network: n, VNI: testNetworks[n], MTU: 1437,
		Addrs:    []vnet.Addr{{CA: testCA(ca), Bits: 24, Gateway: netip.MustParseAddr("10.0.0.254")}},
		Document: &vnet.Document{Instance: "vm-31", Hostname: string(n) + "-host"}}
}

func (o *objects) Reserve(ctx context.Context, q Request, txn *store.Txn) (*Record, error) {
	vni, ok := testNetworks[q.Network]
	if !ok {
		return nil, errUnknownNetwork
	}
	port, err := store.Get[portRow](ctx, o.store, store.Ports+q.Port)
	if err != nil {
		return nil, err
	}
	key := store.CAKey(vni, q.CAs[0])
	if _, err := store.Get[caRow](ctx, o.store, key); !errors.Is(err, store.ErrNotFound) {
		return nil, errors.Join(errTaken, err)
	}
	txn.Unchanged(port.Key, port.Revision).Absent(key).Put(key, caRow{q.Port, "held"})
	return &Record{Tenant: q.Tenant, Port: q.Port, VM: "vm-31", Host: "h2", MAC: vnet.PortMAC(0x1a2b3c4d),
		PA: vnet.PA{Addr: netip.MustParseAddr("100.64.2.31")}, After: testPlace(q.Network, q.CAs[0].String())}, nil
}

func (o *objects) Switch(context.Context, *Record, *store.Txn) error { return o.refuse }

func (o *objects) Join(_ context.Context, _ *Record, txn *store.Txn) error {
	for i := range o.joins {
		txn.Put(store.ServiceKey(testNetworks["blue"], fmt.Sprint("s", i)), i)
	}
	return nil
}

func (o *objects) Undo(ctx context.Context, r *Record, txn *store.Txn) (vnet.Place, error) {
	port, err := store.Get[portRow](ctx, o.store, store.Ports+r.Port)
	txn.Unchanged(port.Key, port.Revision)
	return port.Value.Place, err
}

func (o *objects) Settle(_ context.Context, r *Record, txn *store.Txn) error {
	txn.Put(store.Ports+r.Port, portRow{r.After, r.Phase == Failed})
	txn.Put(store.CAKey(r.Before.VNI, r.Before.Addrs[0].CA), caRow{r.Port, "resting"})
	txn.Put(store.CAKey(r.After.VNI, r.After.Addrs[0].CA), caRow{r.Port, "used"})
	return nil
}

func (o *objects) Release(_ context.Context, r *Record, txn *store.Txn) error {
	key := store.CAKey(r.After.VNI, r.After.Addrs[0].CA)
	if r.Back != nil {
		txn.Put(key, caRow{r.Port, "resting"})
	} else {
		txn.Delete(key)
	}
	return nil
}

// world is one port on one host, the store, and a leader at a time.
type world struct {
	t       testing.TB
	memory  *memory      // nil: a real etcd
	store   *store.Store // of the leader
	eyes    *store.Store // of the test
	objects *objects
	settle  func() // waits until nothing moves
	online  bool
	era     uint16
	started int // swaps
	engine  *Engine
	stop    func() error
	id      string              // of the last swap
	asked   Request             // a start without an answer yet
	calling func(*Engine) error // a call without an answer yet

	mu    sync.Mutex
	ended []Record

	session, seq uint64
	told         *vnet.Status // what the host told last
}

const testPort = "p-31"

func newWorld(t testing.TB, s *store.Store, m *memory) *world {
	w := &world{t: t, memory: m, store: s, eyes: s, objects: &objects{store: s}, settle: synctest.Wait, online: true, era: 2, session: 3}
	if m != nil {
		w.eyes = m.peek()
	}
	home := testPlace("red", "10.0.0.10")
	home.Epoch = vnet.NewEpoch(2, 6)
	home.Document.Epoch = home.Epoch
	r := Record{Port: testPort, Host: "h2", MAC: vnet.PortMAC(0x1a2b3c4d), PA: vnet.PA{Addr: netip.MustParseAddr("100.64.2.31")}}
	var txn store.Txn
	txn.Put(store.Ports+testPort, portRow{Place: home}).
		Put(store.CAKey(home.VNI, home.Addrs[0].CA), caRow{testPort, "used"}).
		Put(store.IntentKey("h2", testPort), vnet.Intent{Port: testPort, ID: 31, Host: "h2", MAC: r.MAC, PA: r.PA, VM: "vm-31", Current: home})
	for key, m := range r.mappings(&home) {
		txn.Put(key, m)
	}
	if _, err := s.Commit(context.Background(), &txn); err != nil {
		t.Fatal(err)
	}
	return w
}

// lead starts a leader, as after an election.
func (w *world) lead() {
	w.engine = New(Options{Store: w.store, Objects: w.objects, Era: w.era,
		Connected: func(string) bool { return w.online },
		OnEnd:     func(r Record) { w.mu.Lock(); defer w.mu.Unlock(); w.ended = append(w.ended, r) }})
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	e := w.engine
	go func() { result <- e.Run(ctx) }()
	w.stop = func() error { cancel(); return <-result }
	select {
	case <-e.Ready():
	case err := <-result:
		w.t.Fatalf("Run: %v", err)
	}
}

// crash replaces the leader; its host tells the new one where it is.
func (w *world) crash() {
	if err := w.stop(); err != nil {
		w.t.Fatalf("Run: %v", err)
	}
	w.lead()
	w.retell()
}

// retell is what a host does after a break of its stream.
func (w *world) retell() {
	if w.told != nil && w.online {
		w.seq++
		w.told.Seq = w.seq
		w.engine.OnStatus(*w.told)
	}
}

func (w *world) request(to vnet.Moniker, ca string) Request {
	w.started++
	return Request{ID: fmt.Sprintf("req-%d", w.started+40), Tenant: "acme", Port: testPort, Network: to, CAs: []vnet.CA{testCA(ca)}}
}

// start swaps the port and remembers the swap.
func (w *world) start(q Request) (Record, error) {
	r, err := w.engine.Start(context.Background(), q)
	if err == nil {
		w.id = r.ID
	}
	return r, err
}

func (w *world) record() Record {
	r, err := w.engine.Get(context.Background(), w.id)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// status is what the host tells of the place its intent leads to.
func (w *world) status(p vnet.StatusPhase, change ...func(*vnet.Status)) bool {
	in := w.intent()
	e := in.Current.Epoch
	if in.Next != nil && (p == vnet.StatusPrepared || p == vnet.StatusRefused) {
		e = in.Next.Epoch
	}
	w.seq++
	s := vnet.Status{Port: testPort, Host: "h2", Epoch: e, Session: w.session, Seq: w.seq, Phase: p, Power: vnet.PowerOn}
	for _, c := range change {
		c(&s)
	}
	w.told = &s
	return w.engine.OnStatus(s)
}

func (w *world) intent() vnet.Intent {
	row, err := store.Get[vnet.Intent](context.Background(), w.eyes, store.IntentKey("h2", testPort))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		w.t.Fatal(err)
	}
	return row.Value
}

// describe is all that the store says of the world, without ids and times.
func (w *world) describe() string {
	var b strings.Builder
	in := w.intent()
	fmt.Fprintf(&b, "intent %s", &in.Current)
	if in.Next != nil {
		fmt.Fprintf(&b, " next %s", in.Next)
	}
	if in.Gone {
		b.WriteString(" gone")
	}
	b.WriteByte('\n')
	if p, err := store.Get[portRow](context.Background(), w.eyes, store.Ports+testPort); err == nil {
		fmt.Fprintf(&b, "port %s %s", p.Value.Place.Network, p.Value.Place.Addrs[0].CA)
		if p.Value.Doomed {
			b.WriteString(" doomed")
		}
		b.WriteByte('\n')
	}
	names := map[vnet.VNI]vnet.Moniker{}
	for n, v := range testNetworks {
		names[v] = n
	}
	for _, m := range listed[vnet.Mapping](w, store.Mappings) {
		fmt.Fprintf(&b, "mapping %s %s %s\n", names[m.VNI], m.CA, m.Epoch)
	}
	cas, _, _ := store.List[caRow](context.Background(), w.eyes, store.CAs)
	for _, c := range cas {
		vni, ca := store.Split(store.CAs, c.Key)
		var v vnet.VNI
		_, _ = fmt.Sscanf(vni, "%d", &v)
		fmt.Fprintf(&b, "ca %s %s %s\n", names[v], ca, c.Value.As)
	}
	if n := len(listed[string](w, store.Live)); n > 0 {
		fmt.Fprintf(&b, "live swaps %d\n", n)
	}
	for _, e := range listed[vnet.Epoch](w, store.Counters+"epochs/") {
		fmt.Fprintf(&b, "burned %s\n", e)
	}
	return b.String()
}

func listed[T any](w *world, prefix string) []T {
	rows, _, err := store.List[T](context.Background(), w.eyes, prefix)
	if err != nil {
		w.t.Fatal(err)
	}
	var all []T
	for _, r := range rows {
		all = append(all, r.Value)
	}
	return all
}

// check holds the store to the invariants that the swap machine answers for.
func (w *world) check() error {
	at := map[string]vnet.VNI{}
	for _, m := range listed[vnet.Mapping](w, store.Mappings) {
		if v, ok := at[m.Port]; ok && v != m.VNI {
			return fmt.Errorf("invariant 3: port %s is in networks %d and %d", m.Port, v, m.VNI)
		}
		at[m.Port] = m.VNI
		in := w.intent()
		if m.Port == testPort && (m.VNI != in.Current.VNI || m.Epoch != in.Current.Epoch || !in.Current.Has(m.CA)) {
			return fmt.Errorf("invariant 2: mapping %v, intent %s", m, &in.Current)
		}
	}
	if in := w.intent(); in.Port != "" && !in.Gone && len(at) != 1 {
		return fmt.Errorf("invariant 3: the port is mapped in %d networks", len(at))
	}
	live, undoable := 0, false
	for _, r := range listed[Record](w, store.Swaps) {
		undoable = undoable || r.Claim == "" && (r.Phase == Switched || r.Phase == Confirmed)
		if !r.Phase.Ended() {
			live++
		}
		if r.Phase.Ended() == r.Ended.IsZero() {
			return fmt.Errorf("swap %s is %s, ended at %v", r.ID, r.Phase, r.Ended)
		}
	}
	if locks := len(listed[string](w, store.Live)); live != locks || live > 1 {
		return fmt.Errorf("%d live swaps, %d locks", live, locks)
	}
	if in := w.intent(); in.Port != "" && !in.Gone && in.Current.Undoable != undoable {
		return fmt.Errorf("the host is told %t of a way back, and it is %t", in.Current.Undoable, undoable)
	}
	return nil
}

// pass lets time go by on the clock of the bubble that the test runs in
// (testing/synctest): nobody waits for it. Everything that is due until then happens.
func pass(d time.Duration) { time.Sleep(d) }

func after(d time.Duration) time.Duration { return d + time.Millisecond }
