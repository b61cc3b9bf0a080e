package wire

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"replug/directory/directorypb"
	"replug/directory/vnet"
)

type duration = time.Duration

// FromStatus makes the message of a status. Host and session are not in it: the
// stream says them. What a guest has written is made valid UTF-8, since a message
// that can't be sent would break the stream again and again.
func FromStatus(s *vnet.Status) *directorypb.Status {
	return &directorypb.Status{
		Port: s.Port, Epoch: uint64(s.Epoch), Seq: s.Seq, Phase: uint32(s.Phase),
		Power: string(s.Power), Error: clean(s.Error), Rung: s.Rung,
		Hops: each(s.Hops, func(h vnet.Hop) *directorypb.Hop {
			return &directorypb.Hop{Name: h.Name, At: fromTime(h.At)}
		}),
		Blackout: durationpb.New(s.Blackout), Guest: fromReport(s.Guest),
	}
}

// ToStatus reads the message of a status; host and session are the stream's.
func ToStatus(m *directorypb.Status, host string, session uint64) (vnet.Status, error) {
	var r reader
	out := vnet.Status{
		Port: m.GetPort(), Host: host, Session: session,
		Epoch: r.epoch("status.epoch", m.GetEpoch()), Seq: m.GetSeq(), Phase: r.phase("status.phase", m.GetPhase()),
		Power: r.power("status.power", m.GetPower()), Error: m.GetError(), Rung: m.GetRung(),
		Hops: each(m.GetHops(), func(h *directorypb.Hop) vnet.Hop {
			return vnet.Hop{Name: h.GetName(), At: r.time("status.hops", h.GetAt())}
		}),
		Blackout: r.duration("status.blackout", m.GetBlackout()), Guest: r.report(m.GetGuest()),
	}
	if out.Port == "" {
		r.fail("status.port", errors.New("is missing"))
	}
	return out, r.err
}

// FromDigest makes the digest entry of a status.
func FromDigest(s *vnet.Status) *directorypb.PortEpoch {
	return &directorypb.PortEpoch{Port: s.Port, Epoch: uint64(s.Epoch), Phase: uint32(s.Phase)}
}

// ToDigest reads a digest entry as a status of sequence 0: any other status of
// the same epoch and session is newer.
func ToDigest(m *directorypb.PortEpoch, host string, session uint64) (vnet.Status, error) {
	return ToStatus(&directorypb.Status{Port: m.GetPort(), Epoch: m.GetEpoch(), Phase: m.GetPhase()}, host, session)
}

func (r *reader) phase(field string, p uint32) vnet.StatusPhase {
	if p < uint32(vnet.StatusPrepared) || p > uint32(vnet.StatusGone) {
		r.fail(field, fmt.Errorf("%d is no phase", p))
	}
	return vnet.StatusPhase(p)
}

func fromReport(g *vnet.GuestReport) *directorypb.GuestReport {
	if g == nil {
		return nil
	}
	return &directorypb.GuestReport{
		Epoch: uint64(g.Epoch), Kind: g.Kind, Ok: g.OK, Error: clean(g.Error), BootId: clean(g.BootID),
		Hostname: clean(g.Hostname), Addrs: each(g.Addrs, clean), Mac: clean(g.MAC), At: fromTime(g.At),
	}
}

func (r *reader) report(m *directorypb.GuestReport) *vnet.GuestReport {
	if m == nil {
		return nil
	}
	if m.Kind != vnet.ReportPartial && m.Kind != vnet.ReportFinal {
		r.fail("status.guest.kind", fmt.Errorf("%q is neither partial nor final", m.Kind))
	}
	return &vnet.GuestReport{
		Epoch: r.epoch("status.guest.epoch", m.Epoch), Kind: m.Kind, OK: m.Ok, Error: m.Error, BootID: m.BootId,
		Hostname: m.Hostname, Addrs: each(m.Addrs, same), MAC: m.Mac, At: r.time("status.guest.at", m.At),
	}
}

func clean(s string) string { return strings.ToValidUTF8(s, "?") }

// fromTime keeps the zero time as absent.
func fromTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func (r *reader) time(field string, t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	if err := t.CheckValid(); err != nil {
		r.fail(field, err)
	}
	return t.AsTime()
}
