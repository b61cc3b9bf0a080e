// Package tests holds what needs more than one room.
package tests

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// A rule says what packages under a room may not import. Prefixes match whole
// path elements.
type rule struct {
	room   string
	but    []string // rooms below it that the rule is not for
	banned []string
	why    string
}

var rules = []rule{
	{"replug", nil, []string{"github.com/pion"}, "SCTP in user space is for tests"},
	{"replug/directory/vnet", nil, []string{"replug", "google.golang.org", "go.etcd.io", "github.com"}, "the vocabulary needs the standard library only"},
	{"replug/bpf", nil, []string{"replug/directory", "replug/dataplane", "replug/control", "google.golang.org", "go.etcd.io"}, "the datapath knows cilium/ebpf only"},
	{"replug/control", nil, []string{"replug/dataplane", "replug/bpf", "replug/tests", "replug/cmd"}, "control says what, the host does how: they meet in the directory"},
	{"replug/dataplane", nil, []string{"replug/control", "replug/tests", "replug/cmd", "go.etcd.io", "replug/directory/store", "replug/directory/etcd", "replug/directory/server"}, "no etcd in the host agent"},
	{"replug/directory", nil, []string{"replug/control", "replug/dataplane", "replug/bpf", "replug/tests", "replug/cmd"}, "the directory is below control and dataplane"},
	{"replug/directory/client", nil, []string{"go.etcd.io"}, "the client runs in the host agent"},
}

// siblings are rooms that never import one another: their parent wires them.
var siblings = []string{"replug/control", "replug/dataplane"}

type listed struct {
	ImportPath  string
	Imports     []string
	TestImports []string
}

func TestRooms(t *testing.T) {
	pkgs := list(t)
	for _, p := range pkgs {
		for _, r := range rules {
			if !within(p.ImportPath, r.room) {
				continue
			}
			for _, imp := range p.Imports {
				if banned(imp, r) {
					t.Errorf("%s imports %s: %s", p.ImportPath, imp, r.why)
				}
			}
		}
		for _, parent := range siblings {
			mine := child(p.ImportPath, parent)
			for _, imp := range p.Imports {
				if other := child(imp, parent); mine != "" && other != "" && other != mine && !strings.HasSuffix(other, "pb") {
					t.Errorf("%s imports its sibling %s: their parent %s should wire them", p.ImportPath, imp, parent)
				}
			}
		}
	}
	if len(pkgs) < 15 {
		t.Errorf("only %d packages seen: the list is not complete", len(pkgs))
	}
}

// TestRoomsBPF: only maps.go of the host agent speaks BPF types.
func TestRoomsBPF(t *testing.T) {
	out, err := exec.Command("grep", "-rlE", `"(replug/bpf|github.com/cilium/ebpf[a-z/]*)"`, "../dataplane", "--include=*.go").Output()
	if err != nil {
		t.Fatalf("grep: %v (no file speaks BPF types: is the agent without a datapath?)", err)
	}
	for f := range strings.FieldsSeq(string(out)) {
		if !strings.HasPrefix(f, "../dataplane/maps") && !strings.HasSuffix(f, "_test.go") {
			t.Errorf("%s imports BPF types; only dataplane/maps*.go does", f)
		}
	}
}

// TestLayout: the top level is settled; what comes new belongs into one of its rooms.
func TestLayout(t *testing.T) {
	cmd := exec.Command("git", "ls-tree", "-d", "--name-only", "HEAD")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git ls-tree: %v", err)
	}
	if got, want := strings.Fields(string(out)), strings.Fields(".ci bpf cmd control dataplane directory docs tests"); !slices.Equal(got, want) {
		t.Errorf("top level has %v, not %v", got, want)
	}
}

func banned(imp string, r rule) bool {
	for _, b := range r.banned {
		if within(imp, b) && !within(imp, r.room) {
			return true
		}
	}
	return false
}

func within(path, room string) bool { return path == room || strings.HasPrefix(path, room+"/") }

// child is the room directly below parent that path is in, or "".
func child(path, parent string) string {
	rest, ok := strings.CutPrefix(path, parent+"/")
	if !ok {
		return ""
	}
	first, _, _ := strings.Cut(rest, "/")
	return first
}

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p listed
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	return pkgs
}
