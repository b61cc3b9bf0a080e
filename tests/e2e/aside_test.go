package e2e_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	pb "replug/control/controlpb"
	"replug/directory/pki"
	"replug/tests/lab"
)

// An aside is a server without hosts, beside the cluster's, for tests that ruin
// its store.
type aside struct {
	w    *world
	dir  string
	addr string
	proc *lab.Proc
}

// asideArgs is the command line of a server on a data directory.
func (w *world) asideArgs(dir, addr string, more ...string) []string {
	f := pki.DirFiles(w.PKI, "s1")
	return append([]string{filepath.Join(bin, "replug-server"), "--name", "aside", "--data-dir", dir, "--listen", addr,
		"--metrics-listen", "", "--ca", f.CA, "--cert", f.Cert, "--key", f.Key}, more...)
}

// aside starts a server of its own, which ends with the test, and waits until it
// leads and is listening: which comes first is open.
func (w *world) aside(ctx context.Context, t *testing.T, dir string, more ...string) *aside {
	t.Helper()
	n := w.used.Add(1)
	a := &aside{w: w, dir: dir, addr: fmt.Sprint(w.Lab.ServerAddr(), ":", 7600+n)}
	var err error
	if a.proc, err = w.Lab.Server().Start(ctx, lab.Cmd{Name: fmt.Sprint("aside", n), Args: w.asideArgs(dir, a.addr, more...)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if a.proc.Alive() {
			_ = a.proc.Kill()
			_ = a.proc.Wait(context.Background())
		}
	})
	if err := errors.Join(a.proc.Says(ctx, "leading"), a.proc.Says(ctx, "listening")); err != nil {
		t.Fatal(err)
	}
	return a
}

// stop ends the server as an operator does.
func (a *aside) stop(ctx context.Context, t *testing.T) {
	t.Helper()
	if err := a.proc.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}

func (a *aside) conn(t *testing.T) *grpc.ClientConn {
	t.Helper()
	return a.w.dial(t, a.addr, pki.DirFiles(a.w.PKI, "operator"))
}

// dial connects to a server of the lab with any certificate.
func (w *world) dial(t *testing.T, addr string, files pki.Files) *grpc.ClientConn {
	t.Helper()
	tls, err := files.ClientTLS(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithDisableServiceConfig(),
		grpc.WithTransportCredentials(credentials.NewTLS(tls)), grpc.WithContextDialer(w.dialer))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// dialer connects from inside the server's namespace.
func (w *world) dialer(ctx context.Context, addr string) (conn net.Conn, err error) {
	err = w.Lab.Server().Do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		return err
	})
	return conn, err
}

// The VNIs are used up: a network more is refused, and one given back is given out.
func TestVNIsUsedUp(t *testing.T) {
	w := shared
	ctx := w.within(t)
	a := w.aside(ctx, t, filepath.Join(t.TempDir(), "data"), "--vni-range", "70007-70009")
	networks := pb.NewNetworksClient(a.conn(t))
	if _, err := pb.NewTenantsClient(a.conn(t)).CreateTenant(ctx, &pb.CreateTenantRequest{RequestId: w.id(), Name: tenant}); err != nil {
		t.Fatal(err)
	}
	create := func(m string) (*pb.Network, error) {
		return networks.CreateNetwork(ctx, &pb.CreateNetworkRequest{RequestId: w.id(),
			Network: &pb.Network{Moniker: m, Tenant: tenant, Subnets: []*pb.Subnet{{Prefix: "10.20.0.0/16"}}}})
	}
	var err error
	made := make(map[string]uint32)
	for i := range 5 {
		m := fmt.Sprint("n", i)
		var n *pb.Network
		if n, err = create(m); err != nil {
			break
		}
		made[m] = n.Vni
	}
	refused(t, err, codes.ResourceExhausted, "VNI")
	// The pool's placeholder network may have one of the three.
	if len(made) < 2 || len(made) > 3 {
		t.Fatalf("three VNIs were enough for the networks %v", made)
	}
	if _, err := networks.DeleteNetwork(ctx, &pb.DeleteNetworkRequest{RequestId: w.id(), Tenant: tenant, Moniker: "n1"}); err != nil {
		t.Fatal(err)
	}
	if n, err := create("again"); err != nil || n.Vni != made["n1"] {
		t.Errorf("after one was given back: %v, %v; want VNI %d", n, err, made["n1"])
	}
}

// A full disk: changes are refused and say so, reading goes on, and with room
// again changes work without a restart.
func TestDiskFull(t *testing.T) {
	w := shared
	ctx := w.within(t)
	dir := t.TempDir()
	if err := unix.Mount("replug-e2e", dir, "tmpfs", 0, "size=256m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	a := w.aside(ctx, t, filepath.Join(dir, "data"))
	tenants := pb.NewTenantsClient(a.conn(t))
	create := func(name string) error {
		_, err := tenants.CreateTenant(ctx, &pb.CreateTenantRequest{RequestId: w.id(), Name: name})
		return err
	}
	if err := create("before"); err != nil {
		t.Fatal(err)
	}
	var room unix.Statfs_t
	if err := unix.Statfs(dir, &room); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, int(room.Bavail)*int(room.Bsize)-(7<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, create("during"), codes.Unavailable, "disk", "full")
	if l, err := tenants.ListTenants(ctx, &pb.ListTenantsRequest{}); err != nil || len(l.Tenants) == 0 {
		t.Errorf("reading on a full disk: %v, %v", l, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := create("after"); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// A corrupted data directory is refused with a way out, and stays as it was byte
// for byte; the way out works.
func TestCorruptedDataDirectory(t *testing.T) {
	w := shared
	ctx := w.within(t)
	base := t.TempDir()
	sound := filepath.Join(base, "sound")
	a := w.aside(ctx, t, sound)
	for i := range 30 { // more than one page of rows
		if _, err := pb.NewTenantsClient(a.conn(t)).CreateTenant(ctx, &pb.CreateTenantRequest{RequestId: w.id(), Name: fmt.Sprint("t", i)}); err != nil {
			t.Fatal(err)
		}
	}
	backup := filepath.Join(base, "monday.backup")
	if _, said, code := w.cli(ctx, t, "backup", backup, "--server", a.addr); code != 0 {
		t.Fatal(said)
	}
	a.stop(ctx, t)
	db := "member/snap/db"
	for name, ruin := range map[string]func(dir string) error{
		"page overwritten": func(dir string) error { return scribble(filepath.Join(dir, db)) },
		"database cut":     func(dir string) error { return os.Truncate(filepath.Join(dir, db), 3*4096+7) },
		"database missing": func(dir string) error { return os.Remove(filepath.Join(dir, db)) },
		"log missing":      func(dir string) error { return os.RemoveAll(filepath.Join(dir, "member/wal")) },
		"log overwritten": func(dir string) error {
			logs, _ := filepath.Glob(filepath.Join(dir, "member/wal/*.wal"))
			slices.Sort(logs)
			return scribble(logs[0])
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if err := os.CopyFS(dir, os.DirFS(sound)); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := ruin(dir); err != nil {
				t.Fatal(err)
			}
			before := sums(t, dir)
			_, err := w.Lab.Server().Run(ctx, w.asideArgs(dir, fmt.Sprint(w.Lab.ServerAddr(), ":7599"))...)
			if err == nil || !strings.Contains(err.Error(), "corrupted") || !strings.Contains(err.Error(), "replug restore") {
				t.Errorf("the server ended with %v, want it to name the directory corrupted, and the way out", err)
			}
			if after := sums(t, dir); !maps.Equal(before, after) {
				t.Errorf("the directory was changed:\n%v\n%v", before, after)
			}
		})
	}
	restored := filepath.Join(base, "restored")
	if _, said, code := w.cli(ctx, t, "restore", backup, "--data-dir", restored); code != 0 {
		t.Fatal(said)
	}
	if _, said, code := w.cli(ctx, t, "restore", backup, "--data-dir", sound); code == 0 || !strings.Contains(said, "not empty") {
		t.Errorf("a restore over a store that is there: exit code %d, %s", code, said)
	}
	b := w.aside(ctx, t, restored)
	l, err := pb.NewTenantsClient(b.conn(t)).ListTenants(ctx, &pb.ListTenantsRequest{})
	if err != nil || len(l.Tenants) < 30 {
		t.Errorf("the restored store has %v (%v), want 30 tenants", l, err)
	}
}

// scribble overwrites 64 bytes in each page of a file's first 16, but the first two.
func scribble(file string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	garbage := []byte(strings.Repeat("\xa5\x5b\xc6\x7d", 16))
	for page := int64(2); page < 16; page++ {
		if _, err := f.WriteAt(garbage, page*4096+8); err != nil {
			return err
		}
	}
	return f.Close()
}

// sums returns the checksum of every file below dir, but the lock, in which the
// last server to try has left its number.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			all[path] = "directory"
			return err
		}
		if d.Name() == "lock" {
			return nil
		}
		b, err := os.ReadFile(path)
		all[path] = fmt.Sprintf("%d bytes, %x", len(b), sha256.Sum256(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
