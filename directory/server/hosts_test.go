package server_test

import (
	"flag"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"replug/directory/directorypb"
	"replug/directory/server"
	"replug/directory/store"
	"replug/directory/vnet"
	"replug/directory/wire"
)

// TestMain keeps the model test short unless it is asked for more
// (-rapid.checks=200).
func TestMain(m *testing.M) {
	checks := flag.Lookup("rapid.checks")
	checks.DefValue = "8"
	if err := checks.Value.Set(checks.DefValue); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// Two agents with one name: the second is refused while the first lives, and
// taken at once when it is gone.
func TestTwoAgents(t *testing.T) {
	e, s := openStore(t, t.TempDir())
	defer func() { _ = e.Close() }()
	c := newControl()
	site := serve(t, server.Options{Store: s, Control: c, Identify: anyHost("h7")}, "")
	first := newWorld(t)
	_, stop := attach(t, site, "h7", 4, first)
	first.until("first attached", func() bool { return first.resyncs > 0 && first.repeated == nil })
	since, ok := site.Connected("h7")
	if infos := site.Infos(); !ok || time.Since(since) > time.Minute || len(infos) != 1 || infos[0].Ports != 50 {
		t.Errorf("Connected = %v, %v; Infos = %v", since, ok, infos)
	}

	second := hello("h7")
	second.Session = 900
	if _, err := say(t, site.addr, second).Recv(); status.Code(err) != codes.AlreadyExists {
		t.Errorf("second agent: %v", err)
	}
	after := newWorld(t)
	attach(t, site, "h7", 5, after)
	stop()
	after.until("second attached", func() bool { return after.resyncs > 0 && after.repeated == nil })
	if calls := c.log(); !slices.Equal(calls, []string{"up h7", "down h7", "up h7"}) {
		t.Errorf("control heard %q", calls)
	}
}

func TestStatuses(t *testing.T) {
	e, s := openStore(t, t.TempDir())
	defer func() { _ = e.Close() }()
	c := newControl()
	commit(t, s, putIntent(putIntent(new(store.Txn), intent("h7", "p23", 0xa1b2c3, 5)), intent("h9", "p45", 0xa1b2c3, 5)))
	site := serve(t, server.Options{Store: s, Control: c, Identify: anyHost("h7")}, "")
	rpc := say(t, site.addr, hello("h7"))
	report := func(port string, epoch uint64, seq uint64, phase vnet.StatusPhase) {
		st := vnet.Status{Port: port, Epoch: vnet.NewEpoch(3, epoch), Seq: seq, Phase: phase}
		if err := rpc.Send(&directorypb.FromHost{Message: &directorypb.FromHost_Status{Status: wire.FromStatus(&st)}}); err != nil {
			t.Fatal(err)
		}
	}
	report("p23", 5, 11, vnet.StatusLeased)
	report("p23", 6, 12, vnet.StatusPrepared)
	report("p23", 5, 13, vnet.StatusPublished) // the staged epoch is higher, and this must be heard
	report("p23", 5, 13, vnet.StatusPublished) // duplicate
	report("p23", 5, 11, vnet.StatusLeased)    // late
	report("p45", 5, 14, vnet.StatusGone)      // another host's port
	report("p67", 5, 15, vnet.StatusGone)      // nobody's
	report("p23", 0, 16, vnet.StatusLeased)    // unreadable: epoch 0.0
	report("p23", 6, 17, vnet.StatusFlipped)
	report("p23", 5, 18, vnet.StatusConfirmed) // of an epoch that is over
	if err := rpc.Send(&directorypb.FromHost{Message: &directorypb.FromHost_Digest{Digest: &directorypb.Digest{Ports: []*directorypb.PortEpoch{
		{Port: "p23", Epoch: uint64(vnet.NewEpoch(3, 6)), Phase: 3}, {Port: "p23", Epoch: uint64(vnet.NewEpoch(3, 7)), Phase: 3}}}}}); err != nil {
		t.Fatal(err)
	}
	report("p23", 7, 19, vnet.StatusLeased)
	for acked := uint64(0); acked < 19; {
		m, err := rpc.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetStatusStored() > 0 {
			acked = m.GetStatusStored()
		}
	}
	want := []string{"up h7", "status p23 3.5 leased seq 11", "status p23 3.6 prepared seq 12", "status p23 3.5 published seq 13",
		"status p23 3.6 flipped seq 17", "status p23 3.7 flipped seq 0", "status p23 3.7 leased seq 19"}
	if got := c.log(); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if st := c.statuses[0]; st.Host != "h7" || st.Session != 4 {
		t.Errorf("host and session are the stream's: %+v", st)
	}
}

// A host that does not keep up loses its stream, others wait for nothing, and in
// the end it knows everything too.
func TestSlowHost(t *testing.T) {
	e, s := openStore(t, t.TempDir())
	defer func() { _ = e.Close() }()
	const red = 0xa1b2c3
	commit(t, s, putIntent(putIntent(new(store.Txn), intent("h7", "p23", red, 5)), intent("h9", "p45", red, 5)))
	metrics := prometheus.NewRegistry()
	site := serve(t, server.Options{Store: s, Control: newControl(), Queue: 100, Metrics: server.NewMetrics(metrics)}, "")
	slow, quick := newWorld(t), newWorld(t)
	attach(t, site, "h7", 4, slow)
	attach(t, site, "h9", 4, quick)
	slow.until("slow attached", func() bool { return slow.revision > 0 })
	quick.until("quick attached", func() bool { return quick.revision > 0 })
	slow.mu.Lock()
	slow.block = make(chan struct{})
	block := slow.block
	slow.mu.Unlock()
	long := strings.Repeat("long", 250) // so that the transport's buffers fill up
	var last int64
	for i := range 1500 {
		m := mapping(red, fmt.Sprintf("10.0.%d.%d", 1+i/200, 2+i%200), "h9", 6)
		m.Port = long
		last = commit(t, s, putMapping(new(store.Txn), m))
		if i%20 == 19 { // its queue is as short
			quick.at(last)
		}
	}
	quick.at(last)
	gone(t, site, "h7")
	close(block)
	slow.at(last)
	slow.mu.Lock()
	defer slow.mu.Unlock()
	if len(slow.mappings[red]) != 1500 || len(quick.mappings[red]) != 1500 {
		t.Errorf("slow: %d mappings; quick: %d", len(slow.mappings[red]), len(quick.mappings[red]))
	}
	if n := value(t, metrics, "replug_directory_slow_streams_total"); n != 1 {
		t.Errorf("%v slow streams were closed, want 1", n)
	}
	if n := value(t, metrics, "replug_directory_streams"); n != 2 {
		t.Errorf("%v streams, want 2", n)
	}
}

func value(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name {
			return f.Metric[0].GetCounter().GetValue() + f.Metric[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// The server dies in mid-stream: the host goes on with the next one where it was,
// and the next leader hears what the host had said.
func TestServerKilled(t *testing.T) {
	dir := t.TempDir()
	e, s := openStore(t, dir)
	commit(t, s, putIntent(putMapping(new(store.Txn), mapping(0xa1b2c3, "10.0.0.10", "h7", 5)), intent("h7", "p23", 0xa1b2c3, 5)))
	c1 := newControl()
	site := serve(t, server.Options{Store: s, Control: c1, Identify: anyHost("h7")}, "")
	w := newWorld(t)
	c, _ := attach(t, site, "h7", 4, w)
	w.until("attached", func() bool { return w.revision > 0 && w.repeated == nil })
	c.Report(vnet.Status{Port: "p23", Epoch: vnet.NewEpoch(3, 5), Phase: vnet.StatusLeased})
	c1.wait(t, "leased", func(calls []string) bool { return slices.Contains(calls, "status p23 3.5 leased seq 1") })
	site.stop()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	c.Report(vnet.Status{Port: "p23", Epoch: vnet.NewEpoch(3, 6), Phase: vnet.StatusPrepared}) // nobody hears it now

	e, s = openStore(t, dir)
	defer func() { _ = e.Close() }()
	last := commit(t, s, putMapping(new(store.Txn), mapping(0xa1b2c3, "10.0.0.20", "h9", 6)))
	c2 := newControl()
	site2 := serve(t, server.Options{Store: s, Control: c2, Identify: anyHost("h7")}, site.addr)
	w.at(last)
	if len(w.mappings[0xa1b2c3]) != 2 || w.resyncs != 1 {
		t.Errorf("%d mappings, %d resyncs", len(w.mappings[0xa1b2c3]), w.resyncs)
	}
	want := []string{"up h7", "status p23 3.5 leased seq 1", "status p23 3.6 prepared seq 2"}
	c2.wait(t, "both statuses", func(calls []string) bool { return len(calls) >= 3 })
	if got := c2.log(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	site2.stop()
}

// A host that hears nothing of its own is moved on all the same, so that it need
// not resync after a break.
func TestQuietHostStaysAbreast(t *testing.T) {
	e, s := openStore(t, t.TempDir())
	defer func() { _ = e.Close() }()
	site := serve(t, server.Options{Store: s, Control: quiet{}, Identify: anyHost("h7"), Ring: 40}, "")
	w := newWorld(t)
	attach(t, site, "h7", 4, w)
	w.until("attached", func() bool { return w.revision > 0 && w.repeated == nil })
	var last int64
	for i := range 200 {
		last = commit(t, s, putMapping(new(store.Txn), mapping(0xb4c5d6, "10.0.0.33", "h9", uint64(5+i))))
	}
	w.at(last - 40)
	if len(w.mappings) != 0 {
		t.Errorf("it heard of %v", w.mappings)
	}
}

// A host that is gone without a word, with its machine or its network, holds its
// name for seconds only.
func TestSilentHost(t *testing.T) {
	e, s := openStore(t, t.TempDir())
	defer func() { _ = e.Close() }()
	c := newControl()
	site := serve(t, server.Options{Store: s, Control: c, Identify: anyHost("h7")}, "")
	through, cut := wireTo(t, site.addr)
	far := *site
	far.addr = through
	w := newWorld(t)
	attach(t, &far, "h7", 4, w) // its stream has no deadline that would end it
	w.until("attached", func() bool { return w.revision > 0 })
	cut()
	c.wait(t, "the host is down", func(calls []string) bool { return slices.Contains(calls, "down h7") })
}

// wireTo is a connection's way to addr that can be cut without a word.
func wireTo(t *testing.T, addr string) (string, func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var cut atomic.Bool
	var ends []net.Conn
	wg.Go(func() {
		near, err := l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", addr)
		if err != nil {
			t.Error(err)
			return
		}
		ends = []net.Conn{near, far}
		for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
			wg.Go(func() {
				b := make([]byte, 32<<10)
				for {
					n, err := way[0].Read(b)
					if err != nil {
						return
					}
					if !cut.Load() {
						_, _ = way[1].Write(b[:n])
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		for _, c := range ends {
			_ = c.Close()
		}
		wg.Wait()
	})
	return l.Addr().String(), func() { cut.Store(true) }
}

// What a host finds out about its own backends reaches the leader, what it says of
// others' doesn't; a new leader hears the newest word on each backend again.
func TestHealth(t *testing.T) {
	e, s := openStore(t, t.TempDir())
	defer func() { _ = e.Close() }()
	const red = 0xa1b2c3
	commit(t, s, putIntent(putIntent(new(store.Txn), intent("h7", "p23", red, 5)), intent("h9", "p45", red, 6)))
	c := newControl()
	site := serve(t, server.Options{Store: s, Control: c, Identify: anyHost("h7")}, "")
	w := newWorld(t)
	host, _ := attach(t, site, "h7", 4, w)
	w.until("attached", func() bool { return w.revision > 0 })
	dead := vnet.Health{VNI: red, Service: "www", Member: "p23", Dead: true, Error: "no answer in 2s"}
	lives := vnet.Health{VNI: red, Service: "dns", Member: "p23"}
	foreign := vnet.Health{VNI: red, Service: "www", Member: "p45", Dead: true}
	host.ReportHealth(foreign, dead, lives)
	said := []string{"health h7 10597059 www p23 dead true no answer in 2s", "health h7 10597059 dns p23 dead false "}
	c.wait(t, "the first words", func(log []string) bool { return len(log) >= 3 && slices.Equal(log[1:], said) })

	dead.Dead, dead.Error = false, ""
	host.ReportHealth(dead)
	c.wait(t, "a change", func(log []string) bool {
		return len(log) == 4 && log[3] == "health h7 10597059 www p23 dead false "
	})
	host.ForgetHealth(red, "dns", "p23")
	site.SetLeader(false, "nobody")
	site.SetLeader(true, "s1")
	c.wait(t, "all that is known again, once", func(log []string) bool {
		return slices.Contains(log, "down h7") && slices.Equal(log[len(log)-2:], []string{"up h7", log[3]})
	})
}
