package flowlog_test

import (
	"bufio"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"replug/dataplane/flowlog"
	"replug/directory/vnet"
)

func record(v vnet.VNI, packets uint64) *flowlog.Record {
	return &flowlog.Record{Time: time.Unix(1764140000, 123456789).UTC(), Event: flowlog.End, Tenant: "acme", Network: "red", VNI: v, Port: "acme.web-1",
		Direction: vnet.In, Protocol: vnet.TCP, Local: netip.MustParseAddrPort("10.17.34.51:443"), Remote: netip.MustParseAddrPort("10.17.34.85:51234"),
		Verdict: vnet.Allow, Rule: "web/https", Seconds: 2.5, Packets: packets, Bytes: 1234}
}

func TestLine(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, flowlog.Defaults)
	write(t, l, record(0xa1b2c3, 17))
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "10597059.jsonl"))
	want := `{"time":"2025-11-26T06:53:20.123456789Z","event":"end","tenant":"acme","network":"red","vni":10597059,"port":"acme.web-1",` +
		`"direction":"in","protocol":"tcp","local":"10.17.34.51:443","remote":"10.17.34.85:51234","verdict":"allow","rule":"web/https",` +
		`"seconds":2.5,"packets":17,"bytes":1234}` + "\n"
	if err != nil || string(b) != want {
		t.Errorf("%v\ngot  %s\nwant %s", err, b, want)
	}
	if i, err := os.Stat(filepath.Join(dir, "10597059.jsonl")); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v: others could read it", i.Mode(), err)
	}
}

// A network keeps so many bytes at most, the newest records, and takes nothing
// from another.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	limits := flowlog.Limits{File: 4096, Files: 3, Age: time.Hour}
	l := open(t, dir, limits)
	write(t, l, record(0xb4c5d6, 5))
	for n := range uint64(1000) {
		write(t, l, record(0xa1b2c3, n))
		if n == 500 { // a restart in between goes on where the file ends
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = open(t, dir, limits)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	next := uint64(0)
	var total int64
	for _, name := range []string{"10597059.jsonl.2", "10597059.jsonl.1", "10597059.jsonl"} {
		got := read(t, filepath.Join(dir, name))
		for _, r := range got {
			if next != 0 && r.Packets != next {
				t.Errorf("%s: record %d, want %d: the order or a line is lost", name, r.Packets, next)
			}
			next = r.Packets + 1
		}
		i, err := os.Stat(filepath.Join(dir, name))
		if err != nil || i.Size() > limits.File {
			t.Errorf("%s: %v, %v", name, i.Size(), err)
		}
		total += i.Size()
	}
	if next != 1000 || total < 2*4096-1000 {
		t.Errorf("the last record is %d, %d bytes are kept", next-1, total)
	}
	if got := read(t, filepath.Join(dir, "11847126.jsonl")); len(got) != 1 || got[0].Packets != 5 {
		t.Errorf("the quiet network has %v", got)
	}
	if all, _ := filepath.Glob(filepath.Join(dir, "*")); len(all) != 4 {
		t.Errorf("files %q", all)
	}
}

// Files of networks that are gone don't stay for ever.
func TestExpire(t *testing.T) {
	dir := t.TempDir()
	for name, age := range map[string]time.Duration{"7.jsonl": 31 * 24 * time.Hour, "7.jsonl.1": 32 * 24 * time.Hour, "8.jsonl": time.Hour, "notes": 99 * 24 * time.Hour} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("{}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir, flowlog.Defaults)
	if all, _ := filepath.Glob(filepath.Join(dir, "*")); len(all) != 2 {
		t.Errorf("left: %q, want 8.jsonl and notes", all)
	}
}

// A file that can't be written is said once and tried again: records come back
// when the disk does.
func TestDisk(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, flowlog.Defaults)
	path := filepath.Join(dir, "10597059.jsonl")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.Write(record(0xa1b2c3, 1)); err == nil {
		t.Error("no error although the file is a directory")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(t, l, record(0xa1b2c3, 2))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); len(got) != 1 || got[0].Packets != 2 {
		t.Errorf("got %v", got)
	}
}

// What was buffered when a disk is full is counted with what comes after.
func TestLostRecords(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/dev/full", filepath.Join(dir, "10597059.jsonl")); err != nil {
		t.Fatal(err)
	}
	l := open(t, dir, flowlog.Defaults)
	for range 7 {
		write(t, l, record(0xa1b2c3, 1))
	}
	if err := l.Flush(); err == nil {
		t.Error("no error although the disk is full")
	}
	if n := l.Lost(); n != 7 {
		t.Errorf("%d records are lost, want 7", n)
	}
	if n := l.Lost(); n != 0 {
		t.Errorf("they are told twice: %d", n)
	}
}

func open(t *testing.T, dir string, limits flowlog.Limits) *flowlog.Log {
	t.Helper()
	l, err := flowlog.Open(dir, limits)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func write(t *testing.T, l *flowlog.Log, r *flowlog.Record) {
	t.Helper()
	if err := l.Write(r); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) (all []flowlog.Record) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var r flowlog.Record
		if err := json.Unmarshal(s.Bytes(), &r); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all = append(all, r)
	}
	return all
}
