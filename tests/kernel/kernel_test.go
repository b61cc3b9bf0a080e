// Package kernel runs what has to run on other machines than this: the datapath on
// the oldest kernel that it is for, Debian 12's Linux 6.1, and the agent in guests on
// arm64. QEMU boots the package's kernel for nothing else, with a room's own tests in it.
package kernel

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"replug/dataplane"
	"replug/tests/lab"
)

var update = flag.Bool("update", false, "record what programs cost the verifier of that kernel in bpf/testdata/verified.txt")

// modules of Debian's kernel that the tests need; other kernels have them built in.
var modules = []string{"veth", "tun", "vxlan", "sch_ingress", "cls_bpf"}

// there are the tests of package bpf that run on the old kernel: every program
// loads, is attached where it belongs and carries frames; the filters that stand
// in for tcx; bytes compared end to end; each drop reason; agents that come again
// under traffic. Emulated, a load of the datapath takes seconds, so what says
// nothing about a kernel stays out; and so does the upgrade from contract 1, whose
// object that kernel doesn't take.
var there = []string{
	"TestVerifierCost", "TestVerifierOfEveryConfig", "TestFeatures", "TestEveryProgramRuns",
	"TestFiltersInsteadOfLinks", "TestMigrateFilters",
	"TestOverRealDevices", "TestMetadataKnowsTheCaller",
	"TestEveryDropReason", "TestRestartAndUpgradeLoseNothing",
}

const marker = "---- replug-host check ----\n"

func TestDebian12(t *testing.T) {
	if b, _ := os.ReadFile("/etc/os-release"); !bytes.Contains(b, []byte("VERSION_CODENAME=bookworm")) {
		t.Skip("Debian 12's kernel comes from Debian 12's package lists, which this machine doesn't have")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience(t))
	defer cancel()
	dir := t.TempDir()
	build(t, "test", "-c", "-o", filepath.Join(dir, "bpf.test"), "replug/bpf")
	build(t, "build", "-o", filepath.Join(dir, "replug-host"), "replug/cmd/replug-host")
	wanted := "^(" + strings.Join(there, "|") + ")$"
	flags := ""
	if *update {
		wanted, flags = "^TestVerifierCost$", "-update"
	}
	start := time.Now()
	v, err := lab.Trial{
		Modules: modules,
		Files: map[string]string{
			"bpf/bpf.test": filepath.Join(dir, "bpf.test"), "bpf/replug-host": filepath.Join(dir, "replug-host"), "bpf/testdata": "../../bpf/testdata",
		},
		// No time limit: an emulated clock may run ahead on a busy machine, and ctx has one.
		// A device with the default route, for the check to look at.
		Command: `
			cd /bpf
			./bpf.test -test.v -test.timeout 0 -test.run '` + wanted + `' ` + flags + ` || exit 1
			` + map[bool]string{true: "cat testdata/verified.txt"}[*update] + `
			ip link add up0 type veth peer name up1 && ip link set up0 up && ip addr add 172.31.9.37/24 dev up0
			mount -t bpf bpf /sys/fs/bpf
			echo '` + strings.TrimSpace(marker) + `'
			./replug-host check --uplink up0 --json`,
		Memory: 2048,
	}.Run(ctx)
	if err != nil {
		t.Fatalf("%v\n%s", err, v.Output)
	}
	t.Logf("Linux %s, %s", v.Kernel, time.Since(start).Round(time.Second))
	if v.Code != 0 || !strings.HasPrefix(v.Kernel, "6.1.") {
		t.Fatalf("Linux %s, exit code %d\n%s", v.Kernel, v.Code, v.Output)
	}
	tests, check, _ := strings.Cut(v.Output, marker)
	if *update {
		record(t, tests)
		return
	}
	judge(t, tests, there)
	judgeCheck(t, check)
}

// patience ends before go test would end us without a word of the machine, which
// would go on.
func patience(t *testing.T) time.Duration {
	long := 10 * time.Minute
	if end, ok := t.Deadline(); ok {
		long = min(long, time.Until(end)-5*time.Second)
	}
	return long
}

// build compiles for a machine without a C library.
func build(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %v: %v\n%s", args, err, out)
	}
}

// judge fails unless each test that was wanted has passed: one that is skipped,
// or has another name now, hasn't.
func judge(t *testing.T, out string, wanted []string) {
	t.Helper()
	var passed []string
	for _, m := range regexp.MustCompile(`(?m)^--- PASS: (\w+) `).FindAllStringSubmatch(out, -1) {
		passed = append(passed, m[1])
	}
	for _, name := range wanted {
		if !slices.Contains(passed, name) {
			t.Errorf("%s hasn't passed", name)
		}
	}
	if t.Failed() || strings.Contains(out, "--- SKIP") {
		t.Errorf("something was skipped or is missing\n%s", out)
	}
}

// judgeCheck fails unless the check says what this kernel is known to lack, and
// that it is good for a host all the same.
func judgeCheck(t *testing.T, out string) {
	t.Helper()
	var all []dataplane.Finding
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("replug-host check: %v\n%s", err, out)
	}
	for what, want := range map[string]dataplane.State{
		"every program of the datapath loads": dataplane.Have, "tcx": dataplane.Lack, "clsact filters": dataplane.Have,
		"decapsulation of merged frames": dataplane.Lack, "VXLAN devices": dataplane.Have, "UDP superpackets from guests": dataplane.Lack,
		"kernel type information": dataplane.Have, "BPF compiler": dataplane.Have, "native XDP of up0": dataplane.Unknown,
		"VLAN tags before XDP": dataplane.Lack, "merging of received frames": dataplane.Lack, "bpf filesystem": dataplane.Have,
	} {
		i := slices.IndexFunc(all, func(f dataplane.Finding) bool { return strings.HasPrefix(f.What, what) })
		if i < 0 || all[i].State != want || want != dataplane.Have && (all[i].Cost == "" || all[i].Do == "") {
			t.Errorf("%s: want %s, with what it costs and what to do, in\n%s", what, want, out)
		}
	}
}

// record takes over the lines that the test in the machine has written.
func record(t *testing.T, out string) {
	t.Helper()
	_, costs, ok := strings.Cut(out, "\n# What each program costs")
	if !ok {
		t.Fatalf("no costs in\n%s", out)
	}
	if err := os.WriteFile("../../bpf/testdata/verified.txt", []byte("# What each program costs"+costs), 0o644); err != nil {
		t.Fatal(err)
	}
}
