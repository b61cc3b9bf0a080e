package trap_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"replug/dataplane/trap"
	"replug/directory/vnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// raw is a record as bpf/vnet.h has it, the frame in a larger room.
func raw(port, kind uint32, epoch uint64, length uint32, frame []byte) []byte {
	var b []byte
	b = binary.NativeEndian.AppendUint32(b, port)
	b = binary.NativeEndian.AppendUint32(b, kind)
	b = binary.NativeEndian.AppendUint64(b, epoch)
	b = binary.NativeEndian.AppendUint32(b, length)
	return append(append(b, frame...), make([]byte, 1532-len(frame))...)
}

var (
	frame = []byte{0x02, 0x52, 0x50, 0x4c, 0x47, 0x57, 0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d, 0x88, 0xb5, 0xca, 0xfe}
	epoch = vnet.NewEpoch(3, 0x0807_0605_0403)
)

func TestParse(t *testing.T) {
	got, err := trap.Parse(raw(0x0abc, 2, uint64(epoch), 16, frame))
	want := trap.Record{Port: 0xabc, Kind: trap.ARPReply, Epoch: epoch, Frame: frame}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	for name, b := range map[string][]byte{
		"nothing":                 nil,
		"half a header":           raw(7, 1, 9, 16, frame)[:19],
		"port 0":                  raw(0, 1, 9, 16, frame),
		"port id out of range":    raw(4095, 1, 9, 16, frame),
		"frame beyond the record": raw(7, 1, 9, 1533, frame),
		"length near the limit":   raw(7, 1, 9, 1<<32-1, frame),
	} {
		if r, err := trap.Parse(b); !errors.Is(err, trap.ErrRecord) {
			t.Errorf("%s: got %+v, %v", name, r, err)
		}
	}
	if r, err := trap.Parse(raw(7, 1, 9, 1532, frame)); err != nil || len(r.Frame) != 1532 {
		t.Errorf("a full record: %d bytes, %v", len(r.Frame), err)
	}
}

// A ring is a source that hands out what it was given, then blocks or fails.
type ring struct {
	records [][]byte
	end     error // nil: block until closed
	closed  chan struct{}
	once    sync.Once
}

func (r *ring) Read() ([]byte, error) {
	if len(r.records) > 0 {
		b := r.records[0]
		r.records = r.records[1:]
		return b, nil
	}
	if r.end != nil {
		return nil, r.end
	}
	<-r.closed
	return nil, io.EOF
}

func (r *ring) Close() error { r.once.Do(func() { close(r.closed) }); return nil }

func TestDispatch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var got []trap.Record
	keep := func(_ context.Context, r trap.Record) {
		r.Frame = bytes.Clone(r.Frame)
		got = append(got, r)
		if len(got) == 3 {
			cancel()
		}
	}
	var refused []error
	d := trap.Dispatcher{
		Source: &ring{closed: make(chan struct{}), records: [][]byte{
			raw(7, 1, 9, 16, frame), raw(7, 77, 9, 16, frame), nil, raw(8, 2, 10, 15, frame), raw(7, 1, 11, 14, frame),
		}},
		Handlers: map[trap.Kind]func(context.Context, trap.Record){trap.DHCP: keep, trap.ARPReply: keep},
		Refused:  func(err error) { refused = append(refused, err) },
	}
	if err := d.Run(ctx); err != nil {
		t.Fatal(err)
	}
	want := []trap.Record{
		{Port: 7, Kind: trap.DHCP, Epoch: 9, Frame: frame},
		{Port: 8, Kind: trap.ARPReply, Epoch: 10, Frame: frame[:15]},
		{Port: 7, Kind: trap.DHCP, Epoch: 11, Frame: frame[:14]},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("records (-want +got):\n%s", d)
	}
	if len(refused) != 2 || !errors.Is(refused[0], trap.ErrRecord) || !errors.Is(refused[1], trap.ErrRecord) {
		t.Errorf("refused %v", refused)
	}
	broken := errors.New("ring is broken")
	d = trap.Dispatcher{Source: &ring{end: broken, closed: make(chan struct{})}}
	if err := d.Run(t.Context()); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

var (
	gatewayIP = netip.MustParseAddr("10.23.32.9")
	guestCA   = vnet.CA{Addr: netip.MustParseAddr("10.23.45.67")}
	guestMAC  = vnet.MAC{0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d}
)

// The bytes of both frames were read with tcpdump -vv -e, and with RFC 826.
func TestARPFrames(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want []byte
	}{
		{"probe", trap.Probe(gatewayIP, vnet.GatewayMAC, guestCA, guestMAC), []byte{
			0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d, 0x02, 0x52, 0x50, 0x4c, 0x47, 0x57, 0x08, 0x06,
			0, 1, 8, 0, 6, 4, 0, 1,
			0x02, 0x52, 0x50, 0x4c, 0x47, 0x57, 10, 23, 32, 9,
			0, 0, 0, 0, 0, 0, 10, 23, 45, 67,
		}},
		{"announcement", trap.Announce(gatewayIP, vnet.GatewayMAC), []byte{
			0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0x52, 0x50, 0x4c, 0x47, 0x57, 0x08, 0x06,
			0, 1, 8, 0, 6, 4, 0, 1,
			0x02, 0x52, 0x50, 0x4c, 0x47, 0x57, 10, 23, 32, 9,
			0, 0, 0, 0, 0, 0, 10, 23, 32, 9,
		}},
	} {
		if d := cmp.Diff(c.want, c.got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

func TestParseARP(t *testing.T) {
	answer := []byte{
		0x02, 0x52, 0x50, 0x4c, 0x47, 0x57, 0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d, 0x08, 0x06,
		0, 1, 8, 0, 6, 4, 0, 2,
		0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d, 10, 23, 45, 67,
		0x02, 0x52, 0x50, 0x4c, 0x47, 0x57, 10, 23, 32, 9,
	}
	want := trap.ARP{Op: trap.ARPAnswer, SenderMAC: guestMAC, SenderIP: guestCA.Addr, TargetMAC: vnet.GatewayMAC, TargetIP: gatewayIP}
	for _, b := range [][]byte{answer, append(bytes.Clone(answer), make([]byte, 18)...)} {
		got, err := trap.ParseARP(b)
		if err != nil || got != want {
			t.Errorf("%d bytes: got %+v, %v", len(b), got, err)
		}
	}
	for at, name := range map[int]string{13: "EtherType", 15: "hardware type", 16: "protocol", 18: "hardware length", 19: "protocol length"} {
		b := bytes.Clone(answer)
		b[at] ^= 0x11
		if got, err := trap.ParseARP(b); !errors.Is(err, trap.ErrARP) {
			t.Errorf("another %s: got %+v, %v", name, got, err)
		}
	}
	for n := range answer {
		if got, err := trap.ParseARP(answer[:n]); !errors.Is(err, trap.ErrARP) {
			t.Errorf("%d bytes: got %+v, %v", n, got, err)
		}
	}
}
