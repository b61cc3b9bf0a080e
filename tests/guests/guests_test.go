package guests

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"replug/tests/cluster"
	"replug/tests/lab"
)

func TestMain(m *testing.M) {
	if err := lab.Check(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var err error
	if bin, err = os.MkdirTemp("", "replug-guests-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(bin)
	os.Exit(code)
}

// bin is the directory of the programs.
var bin string

// A kit is what all worlds have in common.
type kit struct {
	image  string
	helper []string
}

// build makes it once.
var build = sync.OnceValues(func() (k kit, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	if k.image, err = BuildImage(ctx); err != nil {
		return k, err
	}
	if k.helper, err = lab.BuildHelper(ctx, bin); err != nil {
		return k, err
	}
	_, err = lab.Build(ctx, bin, "replug/cmd/replug", "replug/cmd/replug-server", "replug/cmd/replug-host", "replug/cmd/replug-guest")
	return k, err
})

// world is a lab of one host with the real programs.
func world(t *testing.T, f Family) *World {
	t.Helper()
	return worldIn(t, labOf(t, f.letter()), f, cluster.Config{})
}

// labOf is a lab of one host where nothing runs yet. The letter tells it from those
// that are there at the same time.
func labOf(t *testing.T, letter string) *lab.Lab {
	t.Helper()
	kit, err := build()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	l, err := lab.Up(ctx, lab.Config{Name: fmt.Sprintf("guests%d%s", os.Getpid()%10000, letter), Hosts: 1, Helper: kit.helper})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			explain(t, l)
		}
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
		if left := lab.Residue(l.Name()); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
	return l
}

func worldIn(t *testing.T, l *lab.Lab, f Family, config cluster.Config) *World {
	t.Helper()
	kit, err := build()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	config.Bin = bin
	c, err := cluster.Start(ctx, l, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	w, err := NewWorld(ctx, c, f, kit.image)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func explain(t *testing.T, l *lab.Lab) {
	logs, _ := filepath.Glob(filepath.Join(l.Dir(), "*/*.log"))
	for _, log := range logs {
		b, _ := os.ReadFile(log)
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		t.Logf("%s:\n%s", log, strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
}

// full asks for the whole table, and says how many swaps a line has.
func full() (runs int) {
	runs, _ = strconv.Atoi(os.Getenv("REPLUG_GUESTS_RUNS"))
	return runs
}

// only narrows the table down: a pattern for "family: client", and for "package".
var only = regexp.MustCompile(os.Getenv("REPLUG_GUESTS_ONLY"))

func wanted(f Family, c Client) bool { return only.MatchString(f.Name + ": " + c.String()) }

// TestTable is the table of the clients, all of it in machines, and the package's way
// through one: `make test-guests`. The stock image's claims come first, alone, since its
// boots keep all processors busy. Of the rest two go beside each other, the longest ones
// first: a machine waits most of its time, for cuts of its link and for what its client
// waits for. With three on two processors dhcpcd took twice as long.
func TestTable(t *testing.T) {
	runs := full()
	if runs == 0 {
		t.Skip("REPLUG_GUESTS_RUNS asks for it: see make test-guests")
	}
	type part struct {
		name string
		do   func(*testing.T)
	}
	parts := make(chan part, len(Families)+1)
	for _, i := range []int{3, 1, 0, 2} {
		f := Families[i]
		clients := slices.DeleteFunc(Clients(f), func(c Client) bool { return !wanted(f, c) })
		if len(clients) > 0 {
			parts <- part{f.Name, func(t *testing.T) { lines(t, f, clients, runs) }}
		}
	}
	if only.MatchString("package") {
		parts <- part{"package", throughPackage}
	}
	close(parts)
	var beside sync.WaitGroup
	if only.MatchString(Families[0].Name + ": " + claimed) {
		booted := make(chan struct{})
		rests := sync.OnceFunc(func() { close(booted) })
		beside.Go(func() {
			defer rests()
			t.Run("stock", func(t *testing.T) { stock(t, runs, rests) })
		})
		<-booted
	}
	for range 2 {
		beside.Go(func() {
			for p := range parts {
				t.Run(p.name, p.do)
			}
		})
	}
	beside.Wait()
}

// lines makes a family's part of the table, with one machine.
func lines(t *testing.T, f Family, clients []Client, runs int) {
	begun := time.Now()
	s, err := world(t, f).VM(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: the machine took %s", f.Name, time.Since(begun).Round(time.Second))
	for _, c := range clients {
		begun = time.Now()
		line(t, s, c, c.swaps(runs))
		t.Logf("%s: %s took %s", f.Name, c, time.Since(begun).Round(time.Second))
	}
	if err := s.End(context.Background()); err != nil {
		t.Error(err)
	}
}

// stock makes the lines of the stock image: cloud-init in the pool, and what it leaves
// behind when it is done.
func stock(t *testing.T, runs int, rests func()) {
	f := Families[0]
	image, err := lab.BuildDebian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rows, err := worldIn(t, labOf(t, "s"), f, cluster.Config{Image: image, Memory: map[int]int{1: 4096}}).Stock(t.Context(), runs, rests)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		keep(t, row)
		if row.OldAddressLeft {
			t.Errorf("%s keeps an old address", row.Client)
		}
	}
}

// keep says what a row is, and writes it down.
func keep(t *testing.T, row Row) {
	t.Helper()
	t.Logf("%+v", row)
	if said := row.Judge(); said != "" {
		t.Log(said)
	}
	if out := os.Getenv("REPLUG_GUESTS_OUT"); out != "" && full() > 0 {
		if err := Save(out, row); err != nil {
			t.Fatal(err)
		}
	}
}

// line makes one line of the table, and writes it at once: a run that is cut off has
// made the others. Time is judged, not tested.
func line(t *testing.T, s *Subject, c Client, runs int) {
	row, err := s.Try(t.Context(), c, runs)
	if err != nil {
		t.Errorf("%s: %v; the agent said:\n%s", s.Family.Name, err, s.log(t.Context()))
		return
	}
	keep(t, row)
	if only.String() != "" { // who narrows the table down is after something
		t.Logf("%s: %s\n%s\nthe agent said:\n%s", row.Family, row.Client, strings.Join(s.story, "\n"), s.log(t.Context()))
	}
	if s.why != "" {
		t.Logf("%s: %s: %s", row.Family, row.Client, s.why)
	}
	if c.Ought(s.Family) && !row.Follows {
		t.Errorf("%s: %s does not follow; the agent said:\n%s", row.Family, row.Client, s.log(t.Context()))
	}
	if s.restart != "" {
		t.Errorf("%s: %s: a network manager was restarted: %s; the agent said:\n%s", row.Family, row.Client, s.restart, s.log(t.Context()))
	}
	if row.OldAddressLeft && !c.mayKeep(s.Family) {
		t.Errorf("%s: %s keeps something of its old network, %s; the agent said:\n%s", row.Family, row.Client, s.kept, s.log(t.Context()))
	}
}

// The table of the small guests: the clients that do without systemd, in namespaces,
// there and back in IPv4, there in the others. Those that don't follow by themselves have had
// their turn with the agent beside them. One family after the other: all rooms share the
// second in which the kernel holds link messages back.
func TestRooms(t *testing.T) {
	if full() > 0 {
		t.Skip("the table has it")
	}
	for i, f := range Families {
		t.Run(f.Name, func(t *testing.T) {
			w, swaps := world(t, f), 1
			if i == 0 {
				swaps = 2
			}
			for _, c := range Clients(f) {
				if !c.fitsRoom(f) || !c.Ought(f) || !wanted(f, c) {
					continue
				}
				s, err := w.Room(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				line(t, s, c, swaps)
				if err := s.End(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
