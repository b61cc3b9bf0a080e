package dataplane

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"replug/directory/vnet"
)

// One agent at a time; the lock ends with its holder.
func TestStateIsLocked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first, err := openState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openState(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("second: %v", err)
	}
	if err := first.close(); err != nil {
		t.Fatal(err)
	}
	again, err := openState(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
}

// A session is newer than all before it, also when the clock was set back: its
// statuses would lose otherwise.
func TestSessionGrows(t *testing.T) {
	dir := t.TempDir()
	s, err := openState(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	first, err := s.session()
	if err != nil || time.Since(time.Unix(0, int64(first))).Abs() > time.Minute {
		t.Fatalf("first session %d: %v", first, err)
	}
	future := first + uint64(time.Hour)
	if err := os.WriteFile(filepath.Join(dir, "session"), []byte(strconv.FormatUint(future, 10)), 0o600); err != nil {
		t.Fatal(err)
	}
	for want := future + 1; want < future+4; want++ {
		if got, err := s.session(); err != nil || got != want {
			t.Errorf("session %d, want %d (%v)", got, want, err)
		}
	}
}

// Records are read back as they were written; a broken one costs only itself.
func TestRecords(t *testing.T) {
	r, err := newRecords(filepath.Join(t.TempDir(), "ports"))
	if err != nil {
		t.Fatal(err)
	}
	in := prepared(intent())
	at := time.Date(2026, 11, 23, 9, 8, 7, 654321, time.UTC)
	want := record{
		Intent: in,
		Run: run{Epoch: in.Current.Epoch, Step: stepConfirm, Hops: []vnet.Hop{{Name: "flip", At: at}}, Flipped: at, ACK: at,
			Guest: &vnet.GuestReport{Epoch: in.Current.Epoch, Kind: vnet.ReportFinal, OK: true}, Rung: "bounce 20ms", Cuts: 2, Tried: 1},
		Staged: &run{Epoch: in.Next.Epoch, From: []vnet.CA{in.Current.Addrs[0].CA}},
	}
	odd := want
	odd.Intent.Port, odd.Intent.ID = "../acme/p-9", 9
	for _, rec := range []record{want, odd} {
		if err := r.save(rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(r.dir, "broken.json"), []byte(`{"intent":{"port":`), 0o600); err != nil {
		t.Fatal(err)
	}
	killed := r.path("acme/p-8") + ".new" // by an agent that died as it wrote
	if err := os.WriteFile(killed, []byte(`{"intent":{"document":{"pass`), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := r.load()
	if err == nil {
		t.Error("the broken record is not named")
	}
	if _, err := os.Stat(killed); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a record is still there: %v", err)
	}
	same := []cmp.Option{cmpopts.IgnoreUnexported(run{}), cmpopts.EquateComparable(vnet.CA{}, vnet.PA{}, in.Current.Addrs[0].Gateway)}
	sorted := cmpopts.SortSlices(func(a, b record) bool { return a.Intent.Port > b.Intent.Port })
	if d := cmp.Diff([]record{want, odd}, got, append(same, sorted)...); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	files, _ := os.ReadDir(r.dir)
	for _, f := range files {
		if info, _ := f.Info(); info.Mode().Perm() != 0o600 {
			t.Errorf("%s can be read by others: %s", f.Name(), info.Mode())
		}
	}
	for _, rec := range []record{want, odd, odd} {
		if err := r.remove(rec.Intent.Port); err != nil {
			t.Error(err)
		}
	}
	if left, _ := r.load(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// VXLAN over IPv6 leaves 20 bytes less (RFC 7348, section 4.3).
func TestOverhead(t *testing.T) {
	for addr, want := range map[string]int{"172.31.7.2": 50, "fd31:7::2": 70} {
		if got := overhead(netip.MustParseAddr(addr)); got != want {
			t.Errorf("over %s: %d bytes, want %d", addr, got, want)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := func() Config {
		return Config{Servers: []string{"s:7443"}, Name: "h9", StateDir: "/s", BPFFS: "/b", Images: "/i", MaxPorts: 7, CA: "a", Cert: "b", Key: "c"}
	}
	g := good()
	if err := g.Check(); err != nil {
		t.Errorf("good: %v", err)
	}
	for name, spoil := range map[string]func(*Config){
		"no server":        func(c *Config) { c.Servers = nil },
		"bare IPv6 server": func(c *Config) { c.Servers = []string{"s:7443", "fd31::2:7443"} },
		"bad name":         func(c *Config) { c.Name = "h 9" },
		"relative path":    func(c *Config) { c.StateDir = "s" },
		"too many ports":   func(c *Config) { c.MaxPorts = 16383 },
		"no ports":         func(c *Config) { c.MaxPorts = 0 },
		"negative memory":  func(c *Config) { c.Memory = -5 },
		"no key":           func(c *Config) { c.Key = "" },
		"bad acceleration": func(c *Config) { c.Accel = "xen" },
		"prefix with host": func(c *Config) { c.PAPrefix = netip.MustParsePrefix("100.64.9.7/24") },
		"IPv6 with host":   func(c *Config) { c.PAPrefix = netip.MustParsePrefix("fd00:64::7/64") },
		"mapped IPv4":      func(c *Config) { c.PAPrefix = netip.MustParsePrefix("::ffff:100.64.9.0/120") },
	} {
		c := good()
		spoil(&c)
		if err := c.Check(); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
