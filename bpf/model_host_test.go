package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// fromHost is what becomes of a frame from the metadata service: the address that
// it goes to names a port and an epoch (see imds.h).
func (m *model) fromHost(frame []byte) outcome {
	j := &judged{frame: frame}
	var why string
	j.parsed, why = parse(binary.BigEndian.Uint16(frame[12:]), frame[14:], 0)
	ours := j.src == imds || j.src == wireServer || j.src == imds6
	id, epoch := calledOf(j.dst)
	if why != "" || !ours || j.proto != protoTCP || j.sport != 80 || id == 0 {
		return refuse("not_metadata")
	}
	p := m.ports[id]
	if p == nil || epoch != p.Epoch && (j.v6 || epoch != p.Epoch&0x3fff) {
		return refuse("stale_epoch")
	}
	if !p.is(Open) {
		return refuse("to_closed")
	}
	ca, ok := p.first(j.v6)
	if !ok {
		return refuse("stale_epoch")
	}
	if len(frame)-14 > int(p.MTU) {
		return refuse("to_too_big")
	}
	out := bytes.Clone(frame)
	copy(out, p.MAC[:])
	copy(out[6:], gatewayMAC[:])
	j.rewrite(out, true, netip.AddrPortFrom(ca, 0))
	return sendOut(out)
}

// callerIn is the address by which the metadata service knows a port in an epoch.
func callerIn(id uint16, epoch uint64, v6 bool) netip.Addr {
	if !v6 {
		return callerOf(id, epoch)
	}
	b := [16]byte{0xfd, 0x52, 0x50, 0x47}
	binary.BigEndian.PutUint16(b[6:], id)
	binary.BigEndian.PutUint64(b[8:], epoch)
	return netip.AddrFrom16(b)
}

// calledOf reads [callerIn] back; port 0 if it is no such address.
func calledOf(a netip.Addr) (id uint16, epoch uint64) {
	if a.Is6() {
		b := a.As16()
		if !bytes.Equal(b[:6], []byte{0xfd, 0x52, 0x50, 0x47, 0, 0}) {
			return 0, 0
		}
		return binary.BigEndian.Uint16(b[6:]) & 0x3fff, binary.BigEndian.Uint64(b[8:])
	}
	if !a.IsValid() {
		return 0, 0
	}
	n := binary.BigEndian.Uint32(a.AsSlice())
	if n>>28 != 0xf {
		return 0, 0
	}
	return uint16(n >> 14 & 0x3fff), uint64(n & 0x3fff)
}
