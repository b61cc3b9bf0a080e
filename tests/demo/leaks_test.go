package demo

import (
	"testing"
	"time"

	"replug/directory/vnet"
	"replug/tests/lab"
)

// What counts as a leak: r is a probe of the old network, b one of the new, g one of a
// third. One comes each millisecond, the step before the flip is noted after the first
// three, and the one that follows it after six.
func TestCountLeaks(t *testing.T) {
	for _, c := range []struct {
		name, came string
		old, new   int
	}{
		{"the old network, then the new one", "rrrrbbbb", 0, 0},
		{"nothing while there is no link", "rrr   bbb", 0, 0},
		{"switched as soon as it could be", "rrrbbbbb", 0, 0},
		{"switched as late as it could be", "rrrrrrbb", 0, 0},
		{"out of the pool, where nothing comes", "    bbbb", 0, 0},
		{"one of the old network late", "rrrbbrbb", 1, 0},
		{"one of the new network early", "rrrbrrbb", 0, 1},
		{"the new network before the flip was begun", "rbbbbbbb", 0, 2},
		{"the new network in the pool", " bb bbbb", 0, 2},
		{"the old network when the flip was long over", "rrrrrrrrb", 2, 0},
		{"a third network before", "grrrbbbb", 0, 1},
		{"a third network after", "rrrrbbbg", 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			mac := vnet.MAC{0x02, 0x52, 0x7b, 0x6a, 0x59, 0x48}
			begin := time.Date(2031, 3, 5, 7, 11, 13, 0, time.UTC)
			at := func(n float64) time.Time { return begin.Add(time.Duration(n * float64(time.Millisecond))) }
			frames := []lab.Frame{{At: at(3.2), Data: probe(vnet.PortMAC(0x2a3b4c5d), "green")}} // another VM's
			for i, letter := range c.came {
				network := map[rune]string{'r': "red", 'b': "blue", 'g': "green"}[letter]
				if network != "" {
					frames = append(frames, lab.Frame{At: at(float64(i)), Data: probe(mac, network)})
				}
			}
			got, arrived := countLeaks(frames, mac, flip{notBefore: at(2.5), done: at(4.5), notAfter: at(5.5)}, "red", "blue")
			if got.OldAfterFlip != c.old || got.NewBeforeFlip != c.new || arrived["blue"] == 0 {
				t.Errorf("%q: %d of the old network late, %d of the new one early, want %d and %d; arrived %v", c.came, got.OldAfterFlip, got.NewBeforeFlip, c.old, c.new, arrived)
			}
		})
	}
}

// probe is a frame with the text of a probe, and zeros for its headers.
func probe(to vnet.MAC, network string) []byte {
	return append(append(to[:], make([]byte, 36)...), probeText+network...)
}
