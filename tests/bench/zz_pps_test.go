package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestZZ(t *testing.T) {
	ctx := context.Background()
	rounds, _ := strconv.Atoi(os.Getenv("ROUNDS"))
	secs, _ := strconv.ParseFloat(os.Getenv("SECS"), 64)
	w, err := newWorld(ctx, Options{Helper: []string{os.Getenv("HELPER"), "lab", "helper"}, Name: "zz" + strconv.Itoa(os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	defer w.down(ctx)
	if os.Getenv("WHAT") != "xdp" {
		undo, err := disown(w.sides[0])
		if err != nil {
			t.Fatal(err)
		}
		defer undo()
	}
	got := map[string][]float64{}
	if os.Getenv("PIN") != "" {
		for i, pid := range w.keepers() {
			out, err := exec.Command("taskset", "-acp", strconv.Itoa(i), strconv.Itoa(pid)).CombinedOutput()
			if err != nil {
				t.Fatal(string(out))
			}
		}
	}
	names := map[byte]variant{'L': variants[0], 'K': variants[1], 'P': variants[2], 'O': variants[3], 'X': {ours, byXDP}}
	for r := range rounds {
		for _, c := range []byte(os.Getenv("V")) {
			v := names[c]
			one := func() (float64, error) {
				if os.Getenv("WHAT") == "xdp" {
					return w.ppsIntoTap(ctx, v)
				}
				undo, err := v.up(ctx, w)
				if err != nil {
					return 0, err
				}
				defer undo(ctx)
				name := fmt.Sprintf("%d-%c", r, c)
				switch os.Getenv("WHAT") {
				case "rr":
					return w.roundTrips(ctx)
				case "tcp":
					return w.tcp(ctx, name)
				case "offload":
					return w.offloaded(ctx, func() (float64, error) { return w.tcp(ctx, name) })
				}
				a, b := w.sides[0], w.sides[1]
				via := b.nics[vethNIC].mac
				if v.name == plain {
					via = a.nics[vethNIC].hostMAC
				}
				g, err := newBlast(a.guest.Node, a.nics[vethNIC].guest, b.guest.Node, b.nics[vethNIC].guest, a.nics[vethNIC].addr, b.nics[vethNIC].addr, a.nics[vethNIC].mac, via)
				if err != nil {
					return 0, err
				}
				defer g.close()
				g.run(ctx, 200*time.Millisecond)
				return g.run(ctx, time.Duration(secs*float64(time.Second)))
			}
			n, err := one()
			if err != nil {
				t.Fatal(err)
			}
			got[string(c)] = append(got[string(c)], n)
		}
	}
	base := 0.0
	for i, c := range strings.Split(os.Getenv("V"), "") {
		x := got[c]
		sort.Float64s(x)
		p50, p90 := x[len(x)/2], x[len(x)*9/10]
		if i == 0 {
			base = p50
		}
		fmt.Printf("%s p50 %.4g p90 %.4g ratio %.3f | ", c, p50, p90, p50/base)
	}
	fmt.Println(len(got))
}
