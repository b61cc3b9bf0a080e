package bpf

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var (
	fuzzFrames = flag.Int("frames", 200_000, "frames that TestModel puts through the datapath and its model")
	fuzzFor    = flag.Duration("fuzz-for", 0, "instead of -frames: for so long, from another beginning each time; `make fuzz`")
)

// A trial is a frame and where it goes in: what the corpus keeps.
type trial struct {
	host  int    // 0: a, 1: b
	port  uint16 // 0: from the wire; metadata: from the host's service
	gso   int
	frame []byte
}

const metadata = 0xffff

// Whatever comes, the datapath does what the model says: the same verdict, under
// the same name, with the same bytes. Good frames of all kinds are cut, changed
// and mixed; connections, fragments, services and rules go on between them.
func TestModel(t *testing.T) {
	seed := uint64(0x9c41)
	if *fuzzFor > 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %#x", seed)
	r := rand.New(rand.NewPCG(0x5eb7, seed))
	reasons := map[string]int{}
	for _, v6 := range []bool{false, true} {
		a, b := newTwins(t, v6)
		f := &fuzzer{t: t, r: r, twins: [2]*twin{a, b}, v6: v6, reasons: reasons}
		f.replay()
		f.run()
		reasons["untold"] += a.model.untold + b.model.untold
		if f.unsure >= maxUnsure {
			t.Errorf("%d verdicts hung on the clock: the machine is too slow to compare any", f.unsure)
		}
		if n := b.xdp; n[xdpRedirect] == 0 || n[xdpDrop] == 0 {
			t.Errorf("from_nic redirected %d frames and dropped %d: the frames miss it", n[xdpRedirect], n[xdpDrop])
		}
	}
	for _, want := range []string{"none", "rule_in", "rule_out", "no_rule_in", "midstream", "fragment_lost", "fragment_overlap", "service_clash", "dead_backend", "no_backend", "wrong_source", "to_too_big", "ip_options", "bad_l4", "link_scope", "ecn", "nd_probe", "not_metadata", "stale_epoch",
		"trap_rate", "answer_rate", "unresolved_rate", "rate_from", "rate_to", "flow_quota", "untold"} {
		if reasons[want] == 0 && *fuzzFrames >= 100_000 {
			t.Errorf("no frame ended as %s: the frames miss what they are for", want)
		}
	}
	t.Logf("ended as %v", reasons)
}

// A fuzzer makes frames for two hosts over one underlay.
type fuzzer struct {
	t       *testing.T
	r       *rand.Rand
	twins   [2]*twin
	v6      bool
	reasons map[string]int
	kept    int
	unsure  int
}

// batch is how many frames pass before both forget their flows, unless they take so
// long on a busy machine that the datapath might forget one by itself.
const (
	batch     = 5000
	batchTime = 2 * time.Second
)

func (f *fuzzer) run() {
	f.t.Helper()
	end := time.Now().Add(*fuzzFor / 2)
	var forgot time.Time
	changed := false
	for n := 0; *fuzzFor > 0 && time.Now().Before(end) || *fuzzFor == 0 && n < *fuzzFrames/2; n++ {
		if n%batch == 0 || time.Since(forgot) > batchTime {
			f.forget(true)
			forgot, changed = time.Now(), false
		}
		if !changed && (n%batch == batch/2 || time.Since(forgot) > batchTime/2) { // in the midst of a batch
			f.twins[0].change()
			f.twins[1].change()
			changed = true
		}
		if !f.try(f.next()) {
			return
		}
	}
}

// try puts a trial through the datapath and the model; false: enough is wrong.
func (f *fuzzer) try(tr trial) bool {
	f.t.Helper()
	w := f.twins[tr.host]
	wrong := ""
	switch tr.port {
	case 0:
		wrong = w.fromWire(tr.frame, tr.gso)
		if wrong == "" && w.up != nil {
			wrong = f.climb(w)
		}
	case metadata:
		wrong = w.fromHost(tr.frame)
	default:
		wrong = w.fromVM(tr.port, tr.frame, tr.gso)
	}
	f.reasons[w.last]++
	if wrong == "" {
		return true
	}
	if w.late() {
		f.forget(false)
		f.unsure++
		return f.unsure < maxUnsure
	}
	f.kept++
	f.t.Errorf("host %d, port %d, gso %d: %s\nof the frame\n%s", tr.host, tr.port, tr.gso, wrong, dump(tr.frame))
	f.keep(tr)
	f.forget(false) // else what the two know differs from now on
	return f.kept < 5
}

// climb lets a frame that was sent up arrive there, sometimes spoilt.
func (f *fuzzer) climb(w *twin) string {
	c := *w.up
	switch f.r.IntN(8) {
	case 0:
		c.mark ^= 1 << f.r.IntN(32)
	case 1:
		c.vni = pick(f.r, red, blue)
	case 2:
		c.frame = f.spoil(c.frame, 14+70)
	case 3:
		c.src = pick(f.r, f.of(redA2).pa, f.of(redB).pa)
	}
	f.reasons["climbs"]++
	if wrong := w.climb(c); wrong != "" {
		return fmt.Sprintf("climbs with mark %#x, VNI %d, from %s: %s", c.mark, c.vni, c.src, wrong)
	}
	return ""
}

// corpus is where frames are kept that were once judged in two ways.
const corpus = "testdata/corpus"

func (f *fuzzer) keep(tr trial) {
	name := fmt.Sprintf("v%d-%d-%d-%d-%08x.hex", map[bool]int{false: 4, true: 6}[f.v6], tr.host, tr.port, tr.gso, hashOf(tr.frame))
	if err := os.MkdirAll(corpus, 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(corpus, name), dump(tr.frame), 0o644); err != nil {
		f.t.Fatal(err)
	}
	f.t.Logf("kept as %s/%s", corpus, name)
}

func hashOf(b []byte) (h uint32) {
	for _, c := range b {
		h = mix(h, uint32(c))
	}
	return h
}

// replay tries what is kept, without the flows that may have gone before it.
func (f *fuzzer) replay() {
	files, err := filepath.Glob(filepath.Join(corpus, fmt.Sprintf("v%d-*.hex", map[bool]int{false: 4, true: 6}[f.v6])))
	if err != nil {
		f.t.Fatal(err)
	}
	for _, file := range files {
		var v, host, gso int
		var port uint16
		var hash uint32
		if _, err := fmt.Sscanf(filepath.Base(file), "v%d-%d-%d-%d-%x.hex", &v, &host, &port, &gso, &hash); err != nil {
			f.t.Fatalf("%s: %v", file, err)
		}
		lines, err := os.ReadFile(file)
		if err != nil {
			f.t.Fatal(err)
		}
		f.try(trial{host, port, gso, undump(f.t, lines)})
	}
}

// undump is the reverse of dump.
func undump(t *testing.T, lines []byte) []byte {
	t.Helper()
	var hex strings.Builder
	for line := range strings.Lines(string(lines)) {
		for _, b := range strings.Fields(line)[1:] {
			hex.WriteString(b)
		}
	}
	return unhex(t, hex.String())
}
