package guests

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
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
	os.Exit(m.Run())
}

// world is a lab of one host with the real programs.
func world(t *testing.T, f Family) *World {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	image, err := BuildImage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	dir := t.TempDir()
	helper, err := lab.BuildHelper(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Build(ctx, dir, "replug/cmd/replug", "replug/cmd/replug-server", "replug/cmd/replug-host", "replug/cmd/replug-guest"); err != nil {
		t.Fatal(err)
	}
	l, err := lab.Up(ctx, lab.Config{Name: fmt.Sprint("guests", os.Getpid()%10000), Hosts: 1, Helper: helper})
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
	c, err := cluster.Start(ctx, l, cluster.Config{Bin: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	w, err := NewWorld(ctx, c, f, image)
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

// only narrows the table down: a pattern for "family: client".
var only = regexp.MustCompile(os.Getenv("REPLUG_GUESTS_ONLY"))

func wanted(f Family, c Client) bool { return only.MatchString(f.Name + ": " + c.String()) }

// TestTable is the table of the clients, all of it in machines: `make test-guests`.
func TestTable(t *testing.T) {
	runs := full()
	if runs == 0 {
		t.Skip("REPLUG_GUESTS_RUNS asks for it: see make test-guests")
	}
	out := os.Getenv("REPLUG_GUESTS_OUT")
	for _, f := range Families {
		var clients []Client
		for _, c := range Clients(f) {
			if wanted(f, c) {
				clients = append(clients, c)
			}
		}
		if len(clients) == 0 {
			continue
		}
		t.Run(f.Name, func(t *testing.T) {
			w := world(t, f)
			s, err := w.VM(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range clients {
				row, err := s.Try(t.Context(), c, runs)
				if err != nil {
					t.Error(err)
					continue
				}
				t.Logf("%+v", row)
				if !row.Follows {
					t.Logf("%s: %s", c, s.why)
				}
				if out != "" { // at once: a run that is cut off has made these
					if err := Save(out, []Row{row}); err != nil {
						t.Fatal(err)
					}
				}
				if c.Agent && !row.Follows {
					t.Errorf("%s: %s does not follow; the agent said:\n%s", f.Name, c, s.log(t.Context()))
				}
				if row.OldAddressLeft {
					t.Errorf("%s: %s keeps its old address", f.Name, c)
				}
			}
			if err := s.End(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
}

// Clients that ignore a short flap follow with the agent beside them, and keep nothing
// of their old address: the part of the table that needs no machine.
func TestRooms(t *testing.T) {
	if full() > 0 {
		t.Skip("the table has it")
	}
	w := world(t, Families[0])
	for _, c := range Clients(Families[0]) {
		if !c.Agent || c.start != "" && c.room == "" || !wanted(w.Family, c) {
			continue
		}
		s, err := w.Room(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		row, err := s.Try(t.Context(), c, 2)
		if err != nil {
			t.Error(err)
		}
		t.Logf("%+v", row)
		if !row.Follows || row.OldAddressLeft {
			t.Errorf("%s: the agent said:\n%s", c, s.log(t.Context()))
		}
		if err := s.End(context.Background()); err != nil {
			t.Error(err)
		}
	}
}
