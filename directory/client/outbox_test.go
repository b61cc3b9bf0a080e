package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"replug/directory/directorypb"
	"replug/directory/vnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func statusOf(port string, epoch uint64, phase vnet.StatusPhase) vnet.Status {
	return vnet.Status{Port: port, Epoch: vnet.NewEpoch(3, epoch), Phase: phase}
}

func waiting(o *outbox, seq uint64) []string {
	var out []string
	all, _ := o.after(seq)
	for _, s := range all {
		out = append(out, fmt.Sprintf("%s %s %s seq %d", s.Port, s.Epoch, s.Phase, s.Seq))
	}
	return out
}

func TestOutbox(t *testing.T) {
	o := newOutbox(time.Hour)
	_, more := o.after(0)
	o.put(statusOf("p23", 5, vnet.StatusLeased))
	select {
	case <-more:
	default:
		t.Error("nobody was told that there is more")
	}
	o.put(statusOf("p23", 6, vnet.StatusPrepared))
	o.put(statusOf("p45", 7, vnet.StatusFlipped))
	o.put(statusOf("p23", 5, vnet.StatusLeased)) // replaces the first
	want := []string{"p23 3.6 prepared seq 2", "p45 3.7 flipped seq 3", "p23 3.5 leased seq 4"}
	if got := waiting(o, 0); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := waiting(o, 3); !slices.Equal(got, want[2:]) {
		t.Errorf("after 3: got %q, want %q", got, want[2:])
	}
	o.acked(3)
	if got := waiting(o, 0); !slices.Equal(got, want) {
		t.Errorf("young and taken over: got %q, want %q, since the leader may die with it", got, want)
	}

	// The last word on a port is what is in force, not what is staged.
	var digest []string
	for _, d := range o.digest() {
		digest = append(digest, fmt.Sprintf("%s %s %d", d.Port, vnet.Epoch(d.Epoch), d.Phase))
	}
	if want := []string{"p23 3.5 4", "p45 3.7 3"}; !slices.Equal(digest, want) {
		t.Errorf("digest %q, want %q", digest, want)
	}

	// Ten minutes later, what was taken over and is no port's last word is dropped.
	for _, e := range o.entries {
		e.at = e.at.Add(-2 * time.Hour)
	}
	if got, want := waiting(o, 0), []string{"p45 3.7 flipped seq 3", "p23 3.5 leased seq 4"}; !slices.Equal(got, want) {
		t.Errorf("later: got %q, want %q", got, want)
	}
	o.forget("p45")
	if got, want := waiting(o, 0), []string{"p23 3.5 leased seq 4"}; !slices.Equal(got, want) {
		t.Errorf("after the port is gone: got %q, want %q", got, want)
	}
}

// Invariant 8: reporting for ever does not grow the outbox.
func TestOutboxIsBounded(t *testing.T) {
	o := newOutbox(time.Nanosecond)
	for i := range 20_000 {
		o.put(statusOf(fmt.Sprintf("p%d", i%50), uint64(5+i/50), vnet.StatusLeased))
		o.acked(uint64(i))
	}
	if n := len(o.entries); n > 600 {
		t.Errorf("%d entries for 50 ports", n)
	}
	epochs := 0
	for _, e := range o.newest {
		epochs += len(e)
	}
	if epochs > 600 {
		t.Errorf("%d epochs for 50 ports", epochs)
	}
}

// A fakeServer answers each stream as told.
type fakeServer struct {
	directorypb.UnimplementedDirectoryServer
	attach func(directorypb.Directory_AttachServer) error
}

func (f *fakeServer) Attach(s directorypb.Directory_AttachServer) error { return f.attach(s) }

func fake(t *testing.T, attach func(directorypb.Directory_AttachServer) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	directorypb.RegisterDirectoryServer(g, &fakeServer{attach: attach})
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return l.Addr().String()
}

// nothing is a handler that only tells when everything was heard.
type nothing struct{ synced chan int64 }

func (nothing) OnResync()                       {}
func (nothing) OnIntent(vnet.Intent)            {}
func (nothing) OnIntentGone(string)             {}
func (nothing) OnMapping(vnet.Mapping)          {}
func (nothing) OnMappingGone(vnet.VNI, vnet.CA) {}
func (nothing) OnNetworkSynced(vnet.VNI, int64) {}
func (nothing) OnNetworkGone(vnet.VNI)          {}
func (nothing) OnHost(vnet.HostInfo)            {}
func (nothing) OnHostGone(string)               {}
func (n nothing) OnSynced(revision int64)       { n.synced <- revision }

// The leader is found among the endpoints, a dead one and a standby included.
func TestEndpointsInTurn(t *testing.T) {
	standby := fake(t, func(directorypb.Directory_AttachServer) error {
		return status.Error(codes.Unavailable, "this server does not lead: s3 does")
	})
	var mu sync.Mutex
	var hellos []*directorypb.Hello
	leader := fake(t, func(s directorypb.Directory_AttachServer) error {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		mu.Lock()
		hellos = append(hellos, m.GetHello())
		n := len(hellos)
		mu.Unlock()
		for _, m := range []*directorypb.ToHost{
			{Message: &directorypb.ToHost_Welcome{Welcome: &directorypb.Welcome{ClusterId: "cluster-7c", Era: 3, Revision: 400, Resync: n == 1}}},
			{Message: &directorypb.ToHost_Intent{Intent: &directorypb.Intent{Port: "unreadable"}}},
			{Message: &directorypb.ToHost_Synced{Synced: &directorypb.Synced{Revision: 400 + int64(n)}}},
		} {
			if err := s.Send(m); err != nil {
				return err
			}
		}
		if n == 1 {
			return status.Error(codes.Aborted, "come again")
		}
		<-s.Context().Done()
		return nil
	})
	info := vnet.HostInfo{Name: "h7", Address: netip.MustParseAddr("172.31.7.2"), PAPrefix: netip.MustParsePrefix("100.64.7.0/24")}
	h := nothing{make(chan int64, 8)}
	c, err := New(Config{Endpoints: []string{"127.0.0.1:1", standby, leader}, Insecure: true, Host: info, Session: 4}, h)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	if a, b := <-h.synced, <-h.synced; a != 401 || b != 402 {
		t.Errorf("synced at %d, %d", a, b)
	}
	if endpoint, _, ok := c.Connected(); !ok || endpoint != leader {
		t.Errorf("connected to %q, %v", endpoint, ok)
	}
	cancel()
	<-done
	if h := hellos[0]; h.ClusterId != "" || h.Revision != 0 || h.Session != 4 {
		t.Errorf("first hello %v", h)
	}
	if h := hellos[1]; h.ClusterId != "cluster-7c" || h.Era != 3 || h.Revision != 401 {
		t.Errorf("second hello %v", h)
	}
}

func TestConfig(t *testing.T) {
	info := vnet.HostInfo{Name: "h7"}
	for name, c := range map[string]Config{
		"no endpoint":    {Insecure: true, Host: info, Session: 4},
		"no certificate": {Endpoints: []string{"x:1"}, Host: info, Session: 4},
		"no name":        {Endpoints: []string{"x:1"}, Insecure: true, Session: 4},
		"no session":     {Endpoints: []string{"x:1"}, Insecure: true, Host: info},
	} {
		if _, err := New(c, nothing{}); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
