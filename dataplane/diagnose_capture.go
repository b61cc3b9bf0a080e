package dataplane

import (
	"context"
	"fmt"
	"slices"
	"time"

	"replug/dataplane/pcapng"
	"replug/directory/ask"
	"replug/directory/frame"
	"replug/directory/vnet"
)

// capture sends the frames of a port as a pcapng file, until enough are taken or
// nobody wants more.
func (d *diagnosis) capture(ctx context.Context, q ask.Capture, say func(any) error) error {
	r, err := d.find(q.Port)
	if err != nil {
		return err
	}
	look, err := d.copies.open(r.id, atPoints(q.Points))
	if err != nil {
		return err
	}
	defer d.copies.close(look)
	f, err := newCaptureFile(q, r, d.witness.DropText)
	if err != nil {
		return err
	}
	if err := f.flush(say, 0); err != nil {
		return err
	}
	return f.fill(ctx, look, func() uint64 { return d.copies.lost(look) }, func(v any) error {
		// What was taken while the port was not any more what it was stays here.
		if err := d.same(r); err != nil {
			return err
		}
		return say(v)
	})
}

// A captureFile is a pcapng file that leaves in pieces.
type captureFile struct {
	ask.Capture
	mac    vnet.MAC
	says   func(reason string) string
	w      *pcapng.Writer
	piece  []byte
	epoch  time.Time // what the datapath's clock calls 0; set by the first frame
	budget int       // bytes of frames until the next second
	frames uint64
	taken  map[ask.Point]uint64
	over   uint64 // left out: above the rate
	told   uint64 // losses that the file tells of
}

var pointTexts = map[ask.Point]string{
	ask.PointFromVM: "as the VM sent it", ask.PointToVM: "as the VM gets it", ask.PointFromWire: "as it came from the underlay",
	ask.PointToWire: "as it leaves for the underlay", ask.PointDrop: "refused; the comment says why",
}

func newCaptureFile(q ask.Capture, r resident, says func(string) string) (*captureFile, error) {
	if q.Snap <= 0 || q.Snap > ask.MaxSnap {
		q.Snap = ask.MaxSnap
	}
	f := &captureFile{Capture: q, mac: r.mac, says: says, budget: ask.MaxRate, taken: map[ask.Point]uint64{}}
	var interfaces []pcapng.Interface
	for _, p := range ask.Points {
		interfaces = append(interfaces, pcapng.Interface{Name: string(p), Description: pointTexts[p]})
	}
	comment := fmt.Sprintf("port %s of tenant %s in network %s (VNI %d) on host %s", r.name, r.place.Tenant, r.place.Network, r.place.VNI, r.host)
	var err error
	f.w, err = pcapng.NewWriter((*pieces)(f), "replug", comment, q.Snap, interfaces)
	return f, err
}

// pieces is what the file's writer writes to.
type pieces captureFile

func (p *pieces) Write(b []byte) (int, error) {
	p.piece = append(p.piece, b...)
	return len(b), nil
}

// fill adds frames until there are enough. A piece leaves when it is large, or
// soon: who looks wants to see.
func (f *captureFile) fill(ctx context.Context, l *look, lost func() uint64, say func(any) error) error {
	const large, soon = 32 << 10, 100 * time.Millisecond
	tick := time.NewTicker(soon)
	defer tick.Stop()
	second := time.Now()
	for f.Count == 0 || f.frames < uint64(f.Count) {
		select {
		case c := <-l.frames:
			if err := f.add(c); err != nil {
				return err
			}
			if len(f.piece) < large {
				continue
			}
		case now := <-tick.C:
			if now.Sub(second) >= time.Second {
				second, f.budget = now, ask.MaxRate
			}
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := f.flush(say, lost()); err != nil {
			return err
		}
	}
	f.told--
	return f.flush(say, lost())
}

// add adds one frame, unless there have been too many bytes this second.
func (f *captureFile) add(c Copy) error {
	data, length := c.Frame, c.Length
	if f.Inner && f.enclosed(c) {
		if inner, _, ok := frame.Inner(data); ok {
			length -= len(data) - len(inner)
			data = inner
		} else if c.Point != ask.PointDrop { // what is dropped may be unwrapped already
			return nil
		}
	}
	data = data[:min(len(data), f.Snap)]
	if f.budget -= len(data); f.budget < 0 {
		f.over++
		return nil
	}
	if f.epoch.IsZero() {
		f.epoch = time.Now().Add(-c.Now)
	}
	p := pcapng.Packet{Interface: slices.Index(ask.Points, c.Point), At: f.epoch.Add(c.At), Frame: data, Length: length}
	switch c.Point {
	case ask.PointFromVM, ask.PointToWire:
		p.Direction = pcapng.Outbound
	case ask.PointToVM, ask.PointFromWire:
		p.Direction = pcapng.Inbound
	case ask.PointDrop:
		p.Comment = reasonText(c.Drop, f.says(c.Drop))
	}
	f.frames++
	f.taken[c.Point]++
	return f.w.Write(p)
}

// enclosed reports whether a copy may have the underlay's headers around it. What
// the VM itself sent has none, whatever it looks like.
func (f *captureFile) enclosed(c Copy) bool {
	switch c.Point {
	case ask.PointFromWire, ask.PointToWire:
		return true
	case ask.PointDrop:
		return len(c.Frame) < 12 || vnet.MAC(c.Frame[6:12]) != f.mac
	}
	return false
}

func reasonText(reason, says string) string {
	if says == "" {
		return reason
	}
	return reason + ": " + says
}

// flush sends what is new. The file tells of losses itself, too.
func (f *captureFile) flush(say func(any) error, lost uint64) error {
	lost += f.over
	if lost != f.told {
		now := time.Now()
		for i, p := range ask.Points {
			share := uint64(0)
			if i == 0 {
				share = lost // nobody knows at which points
			}
			if err := f.w.Statistics(i, now, f.taken[p], share); err != nil {
				return err
			}
		}
		f.told = lost
	}
	if len(f.piece) == 0 {
		return nil
	}
	err := say(ask.Captured{Data: f.piece, Frames: f.frames, Lost: lost})
	f.piece = nil
	return err
}
