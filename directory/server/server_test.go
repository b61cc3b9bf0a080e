package server_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"replug/directory/client"
	"replug/directory/etcd"
	"replug/directory/pki"
	"replug/directory/server"
	"replug/directory/store"
	"replug/directory/vnet"
)

const deadline = 10 * time.Second

// control is a leader that remembers what it heard.
type control struct {
	mu       sync.Mutex
	calls    []string
	statuses []vnet.Status
	heard    chan struct{}
	refuse   error
}

func newControl() *control { return &control{heard: make(chan struct{}, 1024)} }

func (c *control) add(call string) {
	c.mu.Lock()
	c.calls = append(c.calls, call)
	c.mu.Unlock()
	c.heard <- struct{}{}
}

func (c *control) HostUp(_ context.Context, h vnet.HostInfo) error {
	if c.refuse != nil {
		return c.refuse
	}
	c.add("up " + h.Name)
	return nil
}

func (c *control) HostDown(name string) { c.add("down " + name) }

func (c *control) Status(s vnet.Status) {
	c.mu.Lock()
	c.statuses = append(c.statuses, s)
	c.mu.Unlock()
	c.add(fmt.Sprintf("status %s %s %s seq %d", s.Port, s.Epoch, s.Phase, s.Seq))
}

func (c *control) Health(host string, h vnet.Health) {
	c.add(fmt.Sprintf("health %s %d %s %s dead %t %s", host, h.VNI, h.Service, h.Member, h.Dead, h.Error))
}

func (c *control) log() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.calls...)
}

// wait waits until the log of calls fulfils ok.
func (c *control) wait(t testing.TB, what string, ok func([]string) bool) {
	t.Helper()
	late := time.After(deadline)
	for !ok(c.log()) {
		select {
		case <-c.heard:
		case <-late:
			t.Fatalf("%s: control heard %q", what, c.log())
		}
	}
}

// openStore is an embedded etcd in a directory of the test.
func openStore(t testing.TB, dir string) (*etcd.Etcd, *store.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	e, err := etcd.Open(ctx, etcd.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return e, store.New(e.Client())
}

// A site is one directory server on a real socket.
type site struct {
	*server.Server
	addr string
	ca   string // directory with the CA; "": no TLS
	stop func()
}

// anyHost lets every caller be the host it wants to be.
func anyHost(name string) func(context.Context) (pki.Identity, error) {
	return func(context.Context) (pki.Identity, error) {
		return pki.Identity{Cluster: "lab", Kind: pki.Host, Name: name}, nil
	}
}

// serve starts a server that leads. Addr "" means any port. Without Identify it
// makes a CA and speaks TLS.
func serve(t testing.TB, o server.Options, addr string) *site {
	t.Helper()
	if o.Cluster == "" {
		o.Cluster, o.Era = "cluster-7c", 3
	}
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	s := server.New(o)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	opts, ca := server.Keepalive(), ""
	if o.Identify == nil {
		ca = caOf(t)
		opts = append(opts, grpc.Creds(credentials.NewTLS(issueServer(t, ca))))
	}
	g := grpc.NewServer(opts...)
	s.Register(g)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	wg.Go(func() { _ = g.Serve(l) })
	<-s.Ready()
	s.SetLeader(true, "s1")
	once := sync.Once{}
	stop := func() { once.Do(func() { g.Stop(); cancel(); wg.Wait() }) }
	t.Cleanup(stop)
	return &site{s, l.Addr().String(), ca, stop}
}

// caOf is a directory with a CA, one for all servers of a test.
func caOf(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("replug-server-test-%d-%s", os.Getpid(), t.Name()))
	if err := pki.Init(dir, "lab"); errors.Is(err, pki.ErrExists) {
		return dir
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func issueServer(t testing.TB, dir string) *tls.Config {
	t.Helper()
	f, err := pki.Issue(dir, pki.Request{Kind: pki.Server, Name: "s1"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := f.ServerTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func issueHost(t testing.TB, dir, name string) *tls.Config {
	t.Helper()
	f, err := pki.Issue(dir, pki.Request{Kind: pki.Host, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	c, err := f.ClientTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func hostInfo(name string) vnet.HostInfo {
	return vnet.HostInfo{Name: name, Address: netip.MustParseAddr("172.31.7.2"),
		PAPrefix: netip.MustParsePrefix("100.64.7.0/24"), MTU: 1500, Ports: 50, Version: "test"}
}

// attach runs a client until the test ends or stop is called.
func attach(t testing.TB, site *site, name string, session uint64, h client.Handler) (c *client.Client, stop func()) {
	t.Helper()
	return attachAsked(t, site, name, session, h, nil)
}

// attachAsked is attach of a host that answers questions.
func attachAsked(t testing.TB, site *site, name string, session uint64, h client.Handler, answer client.Asked) (c *client.Client, stop func()) {
	t.Helper()
	config := client.Config{Endpoints: []string{site.addr}, Insecure: site.ca == "",
		Host: hostInfo(name), Session: session, MaxWait: 50 * time.Millisecond, OnAsk: answer}
	if site.ca != "" {
		config.TLS = issueHost(t, site.ca, name)
	}
	c, err := client.New(config, h)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return c, stop
}

func mapping(v vnet.VNI, ca string, host string, epoch uint64) vnet.Mapping {
	return vnet.Mapping{VNI: v, CA: vnet.CA{Addr: netip.MustParseAddr(ca)}, PA: vnet.PA{Addr: netip.MustParseAddr("100.64.9.23")},
		MAC: vnet.PortMAC(0x1a2b3c4d), Epoch: vnet.NewEpoch(3, epoch), Port: "p-" + ca, Host: host}
}

func intent(host, port string, v vnet.VNI, epoch uint64) vnet.Intent {
	return vnet.Intent{Port: port, ID: 23, Host: host, MAC: vnet.PortMAC(0x1a2b3c4d), PA: vnet.PA{Addr: netip.MustParseAddr("100.64.9.23")},
		Current: vnet.Place{Epoch: vnet.NewEpoch(3, epoch), Network: "red", VNI: v}}
}

func putMapping(t *store.Txn, m vnet.Mapping) *store.Txn {
	return t.Put(store.MappingKey(m.VNI, m.CA), m)
}
func putIntent(t *store.Txn, i vnet.Intent) *store.Txn {
	return t.Put(store.IntentKey(i.Host, i.Port), i)
}

func commit(t testing.TB, s *store.Store, x *store.Txn) int64 {
	t.Helper()
	rev, err := s.Commit(context.Background(), x)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}
