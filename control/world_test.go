package control

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	pb "replug/control/controlpb"
	"replug/directory/etcd"
	"replug/directory/pki"
	"replug/directory/store"
)

// patience is how long a test waits for what should happen at once. The machine
// may be busy with other tests.
const patience = 30 * time.Second

// certificates makes the certificates of all tests once: they hold no state.
var certificates = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "replug-control-pki-")
	if err != nil {
		return "", err
	}
	err = pki.Init(dir, "testbed")
	for _, r := range []pki.Request{
		{Kind: pki.Server, Name: "s1"}, {Kind: pki.Server, Name: "s2"}, {Kind: pki.Host, Name: "h7"}, {Kind: pki.Host, Name: "h9"},
		{Kind: pki.Operator, Name: "olga"}, {Kind: pki.Tenant, Name: "acme"}, {Kind: pki.Tenant, Name: "umbra"},
	} {
		_, e := pki.Issue(dir, r)
		err = errors.Join(err, e)
	}
	return dir, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := certificates(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

func files(t testing.TB, name string) pki.Files {
	t.Helper()
	dir, err := certificates()
	if err != nil {
		t.Fatal(err)
	}
	return pki.DirFiles(dir, name)
}

// A world is one server with its embedded store, reached over gRPC with mTLS.
type world struct {
	t      testing.TB
	ctx    context.Context
	dir    string
	change func(*Config)
	addr   string // stays over restarts
	quota  int64  // of the store; 0: the default

	db      *etcd.Etcd
	store   *store.Store
	srv     *Server
	halt    func()
	retire  func() // stops the server only
	closeDB func()
}

func newWorld(t testing.TB, change func(*Config)) *world {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 2*patience)
	w := &world{t: t, ctx: ctx, dir: filepath.Join(t.TempDir(), "data"), change: change, addr: "127.0.0.1:0"}
	t.Cleanup(func() {
		w.stop()
		stop()
	})
	w.start()
	return w
}

// start opens the store and serves until stop.
func (w *world) start() {
	w.t.Helper()
	var err error
	if w.db, err = etcd.Open(w.ctx, etcd.Config{DataDir: w.dir, Name: "s1", Log: quiet(), Quota: w.quota}); err != nil {
		w.t.Fatal(err)
	}
	w.closeDB = sync.OnceFunc(func() { w.db.Close() })
	id, err := w.db.Identity(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	w.store = store.New(w.db.Client())
	l, err := net.Listen("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.addr = l.Addr().String()
	c := Config{Name: "s1", Address: w.addr, Store: w.store, Cluster: id.ID, Era: id.Era, Alone: true, Backup: w.db.Backup, Tidy: w.db.Tidy, Log: quiet()}
	if w.change != nil {
		w.change(&c)
	}
	var halt func()
	w.srv, halt = serve(w.t, c, l)
	w.retire = halt
	w.halt = func() {
		halt()
		w.closeDB()
	}
	w.leads(w.srv)
}

func (w *world) leads(s *Server) {
	w.t.Helper()
	w.wait("leadership", func() error {
		if s.reign.Load() == nil {
			return errors.New("not leading")
		}
		return nil
	})
}

// serve runs a server on l until the function it returns is called.
func serve(t testing.TB, c Config, l net.Listener) (*Server, func()) {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	tls, err := files(t, c.Name).ServerTLS(quiet())
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(append(s.Options(), grpc.Creds(credentials.NewTLS(tls)))...)
	s.Register(g)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("server: %v", err)
		}
	})
	running.Go(func() { _ = g.Serve(l) })
	return s, sync.OnceFunc(func() {
		g.Stop()
		stop()
		running.Wait()
	})
}

func (w *world) stop() {
	if w.halt != nil {
		w.halt()
	}
	w.halt = nil
}

func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.start()
}

func quiet() *slog.Logger {
	if os.Getenv("REPLUG_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

// An api is all services, as one caller has them.
type api struct {
	pb.TenantsClient
	pb.NetworksClient
	pb.GroupsClient
	pb.ServicesClient
	pb.VMTypesClient
	pb.PoolsClient
	pb.VMsClient
	pb.ClaimsClient
	pb.SwapsClient
	pb.PortsClient
	pb.HostsClient
	pb.AdminClient
	pb.DiagnosticsClient
}

// as returns the API as the owner of a certificate has it.
func (w *world) as(name string) api {
	w.t.Helper()
	return dial(w.t, name, w.addr)
}

func dial(t testing.TB, name, addr string) api {
	t.Helper()
	tls, err := files(t, name).ClientTLS(quiet())
	if err != nil {
		t.Fatal(err)
	}
	c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(tls)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return api{
		pb.NewTenantsClient(c), pb.NewNetworksClient(c), pb.NewGroupsClient(c), pb.NewServicesClient(c), pb.NewVMTypesClient(c),
		pb.NewPoolsClient(c), pb.NewVMsClient(c), pb.NewClaimsClient(c), pb.NewSwapsClient(c), pb.NewPortsClient(c), pb.NewHostsClient(c),
		pb.NewAdminClient(c), pb.NewDiagnosticsClient(c),
	}
}

// wait looks again and again, without haste, until f is content.
func (w *world) wait(what string, f func() error) {
	w.t.Helper()
	err := errors.New("not tried")
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(3 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	w.t.Fatalf("%s: %v", what, err)
}

// code fails the test unless err has the code and its message each of the words.
func code(t *testing.T, what string, err error, want codes.Code, words ...string) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("%s: got %v (%v), want %v", what, got, err, want)
		return
	}
	for _, word := range words {
		if !strings.Contains(status.Convert(err).Message(), word) {
			t.Errorf("%s: %q says nothing of %q", what, status.Convert(err).Message(), word)
		}
	}
}

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// id makes a request id from what is asked.
func id(parts ...any) string { return fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, parts...))) }
