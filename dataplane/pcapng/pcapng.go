// Package pcapng writes capture files (draft-ietf-opsawg-pcapng): one section, an
// interface for each point at which frames are taken, a comment on a frame. It is
// its own writer because the libraries that can do comments bring decoders of
// every protocol into the host agent.
package pcapng

import (
	"encoding/binary"
	"io"
	"time"
)

// Block types and options (sections 4 and 3.5 of the draft).
const (
	sectionHeader        = 0x0A0D0D0A
	interfaceDescription = 1
	interfaceStatistics  = 5
	enhancedPacket       = 6

	optEnd     = 0
	optComment = 1

	shbApplication                   = 4
	ifName, ifDescription, ifTSResol = 2, 3, 9
	epbFlags                         = 2
	isbReceived, isbDropped          = 4, 5

	ethernet = 1
)

// Direction is a frame's, seen from the VM.
type Direction uint32

// The directions (section 4.3.1 of the draft).
const (
	Unknown  Direction = 0
	Inbound  Direction = 1
	Outbound Direction = 2
)

// An Interface is where frames are taken.
type Interface struct {
	Name, Description string
}

// A Packet is one frame.
type Packet struct {
	Interface int // index
	At        time.Time
	Frame     []byte // as much as was kept
	Length    int    // that it had, at least len(Frame)
	Direction Direction
	Comment   string // "": none
}

// A Writer writes one section. Each of its calls writes whole blocks.
type Writer struct {
	w     io.Writer
	block []byte
}

// NewWriter begins a file: section header and interfaces.
func NewWriter(w io.Writer, application, comment string, snap int, interfaces []Interface) (*Writer, error) {
	p := &Writer{w: w}
	p.begin(sectionHeader)
	p.block = binary.LittleEndian.AppendUint32(p.block, 0x1A2B3C4D)
	p.block = append(p.block, 1, 0, 0, 0)                                   // version 1.0
	p.block = binary.LittleEndian.AppendUint64(p.block, 0xffffffffffffffff) // length not known
	p.option(shbApplication, application)
	p.option(optComment, comment)
	if err := p.end(); err != nil {
		return nil, err
	}
	for _, i := range interfaces {
		p.begin(interfaceDescription)
		p.block = append(p.block, ethernet, 0, 0, 0)
		p.block = binary.LittleEndian.AppendUint32(p.block, uint32(snap))
		p.option(ifName, i.Name)
		p.option(ifDescription, i.Description)
		p.option(ifTSResol, "\x09") // nanoseconds
		if err := p.end(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Write adds one frame.
func (p *Writer) Write(f Packet) error {
	p.begin(enhancedPacket)
	p.block = binary.LittleEndian.AppendUint32(p.block, uint32(f.Interface))
	p.time(f.At)
	p.block = binary.LittleEndian.AppendUint32(p.block, uint32(len(f.Frame)))
	p.block = binary.LittleEndian.AppendUint32(p.block, uint32(max(f.Length, len(f.Frame))))
	p.padded(f.Frame)
	if f.Direction != Unknown {
		p.option(epbFlags, string(binary.LittleEndian.AppendUint32(nil, uint32(f.Direction))))
	}
	p.option(optComment, f.Comment)
	return p.end()
}

// Statistics says how many frames of an interface are in the file, and how many
// were lost, up to a time. It belongs to the end of a file.
func (p *Writer) Statistics(i int, at time.Time, received, lost uint64) error {
	p.begin(interfaceStatistics)
	p.block = binary.LittleEndian.AppendUint32(p.block, uint32(i))
	p.time(at)
	p.option(isbReceived, string(binary.LittleEndian.AppendUint64(nil, received)))
	p.option(isbDropped, string(binary.LittleEndian.AppendUint64(nil, lost)))
	return p.end()
}

func (p *Writer) begin(kind uint32) {
	p.block = binary.LittleEndian.AppendUint32(p.block[:0], kind)
	p.block = append(p.block, 0, 0, 0, 0) // length, known at the end
}

func (p *Writer) time(at time.Time) {
	ns := uint64(at.UnixNano())
	p.block = binary.LittleEndian.AppendUint32(p.block, uint32(ns>>32))
	p.block = binary.LittleEndian.AppendUint32(p.block, uint32(ns))
}

// padded appends b and zeros up to 32 bits.
func (p *Writer) padded(b []byte) {
	p.block = append(p.block, b...)
	for len(p.block)%4 != 0 {
		p.block = append(p.block, 0)
	}
}

// option appends an option, unless it says nothing.
func (p *Writer) option(code uint16, value string) {
	if value == "" {
		return
	}
	value = value[:min(len(value), 0xffff)]
	p.block = binary.LittleEndian.AppendUint16(p.block, code)
	p.block = binary.LittleEndian.AppendUint16(p.block, uint16(len(value)))
	p.padded([]byte(value))
}

func (p *Writer) end() error {
	p.block = append(p.block, optEnd, 0, 0, 0)
	size := uint32(len(p.block) + 4)
	binary.LittleEndian.PutUint32(p.block[4:], size)
	p.block = binary.LittleEndian.AppendUint32(p.block, size)
	_, err := p.w.Write(p.block)
	return err
}
