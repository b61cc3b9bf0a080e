package swap

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/store"
	"replug/directory/vnet"
)

var update = flag.Bool("update", false, "write what the scenarios print into their files")

// A scenario is a text file: a command a line, what it leads to indented below it.
//
//	start to=blue ca=10.0.0.20 [confirm=guest] [claim=cl-7]
//	host PHASE [off] [error=...] [late] [early] [guest=failed|partial] [reset]
//	again                 the host's last status once more
//	confirm, cancel, delete
//	cut, heal             the host's stream
//	store down, store up
//	wait 15s              and a millisecond
type scenario struct {
	name  string
	lines []string // commands
	wants []string // what each leads to
}

func readScenarios(t *testing.T) []*scenario {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d scenarios, %v", len(files), err)
	}
	var all []*scenario
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		s := &scenario{name: strings.TrimSuffix(filepath.Base(f), ".txt")}
		for line := range strings.Lines(string(b)) {
			switch n := len(s.lines); {
			case strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "":
			case strings.HasPrefix(line, "    "):
				s.wants[n-1] += line[4:]
			default:
				s.lines, s.wants = append(s.lines, strings.TrimSpace(line)), append(s.wants, "")
			}
		}
		all = append(all, s)
	}
	return all
}

func (s *scenario) write(t *testing.T, got []string) {
	var b strings.Builder
	old, err := os.ReadFile("testdata/" + s.name + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(old)) {
		if strings.HasPrefix(line, "#") {
			b.WriteString(line)
		}
	}
	for i, line := range s.lines {
		fmt.Fprintf(&b, "%s\n", line)
		for out := range strings.Lines(got[i]) {
			b.WriteString("    " + out)
		}
	}
	if err := os.WriteFile("testdata/"+s.name+".txt", []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// do runs one command.
func (w *world) do(line string) {
	word, args, _ := strings.Cut(line, " ")
	switch word {
	case "start":
		w.asked = startRequest(w, args)
		w.retryStart()
	case "host":
		w.hostSays(args)
	case "again":
		w.engine.OnStatus(*w.told)
	case "confirm":
		w.call(func(e *Engine) error { _, err := e.Confirm(context.Background(), w.id); return err })
	case "cancel":
		w.call(func(e *Engine) error { _, err := e.Cancel(context.Background(), w.id, "cancelled by kim"); return err })
	case "delete":
		w.told = nil
		w.call(w.deletePort)
	case "cut", "heal":
		w.online = word == "heal"
		w.engine.OnHost("h2", w.online)
		w.retell()
	case "store":
		w.memory.setDown(args == "down")
		if args == "up" {
			pass(2 * lastRetry)
		}
	case "wait":
		d, err := time.ParseDuration(args)
		if err != nil {
			w.t.Fatal(err)
		}
		pass(after(d))
	default:
		w.t.Fatalf("no command %q", word)
	}
}

func startRequest(w *world, args string) Request {
	f := fields(args)
	q := w.request(vnet.Moniker(f["to"]), f["ca"])
	q.Confirm, q.Claim = vnet.Confirm(f["confirm"]), f["claim"]
	return q
}

// retryStart asks until the answer is known, as a caller does.
func (w *world) retryStart() {
	if w.asked.ID == "" {
		return
	}
	if _, err := w.start(w.asked); err == nil {
		w.asked = Request{}
	} else if !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, ErrStopped) {
		w.t.Fatal(err)
	}
}

// call makes a call that may wait for a later command; after a crash before its
// answer it is made again, as a caller does.
func (w *world) call(f func(*Engine) error) {
	w.mu.Lock()
	w.calling = f
	w.mu.Unlock()
	e := w.engine
	go func() {
		err := f(e)
		w.mu.Lock()
		defer w.mu.Unlock()
		switch {
		case err == nil || errors.Is(err, ErrEnded):
			w.calling = nil
		case !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, ErrStopped):
			w.t.Error(err)
		}
	}()
}

func (w *world) retryCall() {
	w.mu.Lock()
	f := w.calling
	w.mu.Unlock()
	if f != nil {
		w.call(f)
	}
}

func (w *world) hostSays(args string) {
	word, args, _ := strings.Cut(args, " ")
	var phase vnet.StatusPhase
	for p := vnet.StatusPrepared; p <= vnet.StatusGone; p++ {
		if p.String() == word {
			phase = p
		}
	}
	f := fields(args)
	s := func(s *vnet.Status) {
		if _, ok := f["off"]; ok {
			s.Power = vnet.PowerOff
		}
		if _, ok := f["late"]; ok {
			s.Seq, w.seq = s.Seq-2, w.seq-1
		}
		if _, ok := f["early"]; ok {
			s.Epoch--
		}
		if _, ok := f["reset"]; ok {
			s.Hops = []vnet.Hop{{Name: "flip", At: time.Now()}, {Name: vnet.HopReset, At: time.Now()}}
		}
		s.Error = strings.ReplaceAll(f["error"], "_", " ")
		if k := f["guest"]; k != "" {
			kind := map[string]string{"failed": vnet.ReportFinal, "partial": vnet.ReportPartial}[k]
			s.Guest = &vnet.GuestReport{Epoch: s.Epoch, Kind: kind, Error: "disk full"}
		}
	}
	told := w.told
	w.status(phase, s)
	if strings.Contains(args, "late") || strings.Contains(args, "early") {
		w.told = told
	}
}

func fields(args string) map[string]string {
	f := map[string]string{}
	for _, a := range strings.Fields(args) {
		k, v, _ := strings.Cut(a, "=")
		f[k] = v
	}
	return f
}

// says is what a command led to: the swap, and once it has ended, the world.
func (w *world) says() string {
	if w.asked.ID != "" {
		return "no answer\n"
	}
	if w.id == "" {
		return ""
	}
	r := w.record()
	var b strings.Builder
	b.WriteString(r.Phase.String())
	if r.Error != "" {
		fmt.Fprintf(&b, "; error: %s", r.Error)
	}
	if r.Alarm != "" {
		fmt.Fprintf(&b, "; alarm: %s", r.Alarm)
	}
	fmt.Fprintf(&b, "; writes %d\n", r.Writes)
	if r.Phase.Ended() {
		b.WriteString(w.describe())
	}
	return strings.ReplaceAll(b.String(), w.id, "ID")
}

// TestScenarios runs each file as it is: what it prints is golden.
func TestScenarios(t *testing.T) {
	for _, s := range readScenarios(t) {
		t.Run(s.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				var got []string
				for _, line := range s.lines {
					w.do(line)
					synctest.Wait()
					got = append(got, w.says())
				}
				if *update {
					s.write(t, got)
					return
				}
				for i, line := range s.lines {
					if got[i] != s.wants[i] {
						t.Errorf("%s\ngot:\n%swant:\n%s", line, got[i], s.wants[i])
					}
				}
			})
		})
	}
}

// end is the world in which a scenario ends: the last thing it prints, without the
// number of writes and the reasons, which may differ after a crash.
func end(says string) string {
	line, rest, _ := strings.Cut(says, "\n")
	phase, _, _ := strings.Cut(line, ";")
	return phase + "\n" + rest
}

// TestScenariosWithCrash runs each file with the server killed, the host's agent
// killed, or both, after every command: all end in the same world (invariant 3).
func TestScenariosWithCrash(t *testing.T) {
	for _, s := range readScenarios(t) {
		want := end(s.wants[len(s.wants)-1])
		for at := range s.lines[:len(s.lines)-1] {
			for _, who := range []string{"server", "host", "both"} {
				t.Run(fmt.Sprintf("%s/%s after %s", s.name, who, s.lines[at]), func(t *testing.T) {
					inBubble(t, func(t *testing.T, w *world) {
						for i, line := range s.lines {
							w.do(line)
							synctest.Wait()
							if i != at {
								continue
							}
							if who != "server" {
								w.crashHost()
							}
							if who != "host" {
								w.crashServer()
							}
							synctest.Wait()
						}
						if got := end(w.says()); got != want {
							t.Errorf("ends in:\n%swant:\n%s", got, want)
						}
					})
				})
			}
		}
	}
}

// TestScenariosWithCrashAtWrite kills the server right after each of its writes,
// once it was answered and once before: so in the phases that no command stops at.
func TestScenariosWithCrashAtWrite(t *testing.T) {
	for _, s := range readScenarios(t) {
		want := end(s.wants[len(s.wants)-1])
		for at := 1; at <= 8; at++ {
			for _, lost := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/write %d, lost %v", s.name, at, lost), func(t *testing.T) {
					inBubble(t, func(t *testing.T, w *world) {
						w.crashAtWrite(at, lost)
						for _, line := range s.lines {
							w.do(line)
							synctest.Wait()
							w.recover()
							synctest.Wait()
						}
						if got := end(w.says()); got != want {
							t.Errorf("ends in:\n%swant:\n%s", got, want)
						}
					})
				})
			}
		}
	}
}

// crashAtWrite makes the leader lose its store with its n-th write from now.
func (w *world) crashAtWrite(n int, lost bool) {
	m := w.memory
	m.onWrite = func() {
		if n--; n == 0 {
			m.dead = true
			if lost {
				m.lose = 1
			}
		}
	}
}

// recover replaces a leader that crashAtWrite has cut off.
func (w *world) recover() {
	if w.memory.isDead() {
		w.crashServer()
	}
}

func (w *world) crashServer() {
	if w.memory != nil && !w.memory.revive() {
		return // the next chance is when it is up again
	}
	if err := w.stop(); err != nil {
		w.t.Fatalf("Run: %v", err)
	}
	w.lead()
	w.retryStart()
	w.retell()
	w.settle()
	w.retryCall()
}

// crashHost restarts the host's agent: a new session, which first tells what it
// reads back from the dataplane, and then what it proves again.
func (w *world) crashHost() {
	w.session, w.seq = w.session+1, 0
	if w.told == nil {
		return
	}
	last := *w.told
	w.told.Session = w.session
	if last.Phase > vnet.StatusFlipped {
		w.told.Phase = vnet.StatusFlipped
		w.retell()
		w.told.Phase = last.Phase
	}
	w.retell()
}
