package client

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"replug/directory/directorypb"
	"replug/directory/vnet"
)

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
func (nothing) OnGroup(vnet.Group)              {}
func (nothing) OnGroupGone(vnet.VNI, string)    {}
func (nothing) OnService(vnet.Service)          {}
func (nothing) OnServiceGone(vnet.VNI, string)  {}
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

// Invariant 5: a break in the middle of a resync means another resync, since what
// the host holds is neither the old nor the new.
func TestBreakDuringResync(t *testing.T) {
	hellos := make(chan int64, 100)
	var streams atomic.Int32
	addr := fake(t, func(s directorypb.Directory_AttachServer) error {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		hellos <- m.GetHello().GetRevision()
		w := &directorypb.Welcome{ClusterId: "cluster-7c", Era: 3, Revision: 400, Resync: true}
		_ = s.Send(&directorypb.ToHost{Message: &directorypb.ToHost_Welcome{Welcome: w}})
		if streams.Add(1) == 1 {
			_ = s.Send(&directorypb.ToHost{Message: &directorypb.ToHost_Synced{Synced: &directorypb.Synced{Revision: 400}}})
		}
		return status.Error(codes.Aborted, "come again")
	})
	info := vnet.HostInfo{Name: "h7", Address: netip.MustParseAddr("172.31.7.2"), PAPrefix: netip.MustParsePrefix("100.64.7.0/24")}
	c, err := New(Config{Endpoints: []string{addr}, Insecure: true, Host: info, Session: 4}, nothing{make(chan int64, 8)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	if a, b, c := <-hellos, <-hellos, <-hellos; a != 0 || b != 400 || c != 0 {
		t.Errorf("hellos with revision %d, %d, %d, want 0, 400, 0", a, b, c)
	}
	cancel()
	<-done
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
