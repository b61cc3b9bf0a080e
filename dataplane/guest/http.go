package guest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// do sends one request and reads the answer. No answer in time, or no way to IMDS,
// is errStale. A connection that is refused is none: the address is good, and a lease
// that is given up while the host's agent starts again would be missed.
//
// It speaks HTTP/1.0 (RFC 1945): the answer is one piece and ends with the
// connection. A connection from before a swap would lead nowhere, so none is kept,
// and the machinery that net/http has for keeping them would be half of the binary:
// 7.3 MB instead of 4.0, and cold code is what a swap waits for in a slow guest.
func (m *imds) do(ctx context.Context, method, path string, body []byte) (int, []byte, error) {
	host := m.host
	conn, err := dial(ctx, m.addr)
	if err != nil && m.addr == metadata4 { // there may be no IPv4 in this network
		c, err6 := dial(ctx, metadata6)
		if err6 == nil || errors.Is(err6, syscall.ECONNREFUSED) {
			conn, host, err = c, "[fd00:ec2::254]", err6
		} else {
			err = fmt.Errorf("%w; %w", err, err6)
		}
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return 0, nil, fmt.Errorf("%w: the host is there, its agent is not: %w", errEmpty, err)
	case err != nil:
		return 0, nil, fmt.Errorf("%w: %w", errStale, err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(m.wait + time.Second))
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })()
	var req bytes.Buffer
	fmt.Fprintf(&req, "%s %s HTTP/1.0\r\nHost: %s\r\nMetadata: true\r\n", method, path, host)
	if body != nil {
		fmt.Fprintf(&req, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	req.WriteString("\r\n")
	req.Write(body)
	if _, err := conn.Write(req.Bytes()); err != nil {
		return 0, nil, fmt.Errorf("%w: %w", errStale, err)
	}
	return readAnswer(bufio.NewReader(io.LimitReader(conn, maxDocument+maxHead)))
}

// Where guests find the metadata service.
const (
	metadata4 = "169.254.169.254:80"
	metadata6 = "[fd00:ec2::254]:80"
)

// dial gives up after a second. A SYN that is lost would be sent again after that
// second only, so a second one follows sooner.
func dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 250 * time.Millisecond}
	c, err := d.DialContext(ctx, "tcp", addr)
	if isTimeout(err) && ctx.Err() == nil {
		d.Timeout = 750 * time.Millisecond
		c, err = d.DialContext(ctx, "tcp", addr)
	}
	return c, err
}

// maxHead bounds an answer's status line and headers, bytes.
const maxHead = 16 << 10

func readAnswer(r *bufio.Reader) (status int, body []byte, err error) {
	head := textproto.NewReader(r)
	line, err := head.ReadLine()
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", errStale, err)
	}
	version, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	status, err = strconv.Atoi(code)
	if err != nil || !strings.HasPrefix(version, "HTTP/1.") || status < 200 || status > 599 {
		return 0, nil, fmt.Errorf("%w: %.40q is no HTTP status", errMalformed, line)
	}
	headers, err := head.ReadMIMEHeader()
	switch {
	case err != nil && (errors.Is(err, io.ErrUnexpectedEOF) || isTimeout(err)):
		return 0, nil, fmt.Errorf("%w: %w", errStale, err)
	case err != nil:
		return 0, nil, fmt.Errorf("%w: %w", errMalformed, err)
	case headers.Get("Transfer-Encoding") != "":
		return 0, nil, fmt.Errorf("%w: transfer encoding %q", errMalformed, headers.Get("Transfer-Encoding"))
	}
	body, err = io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", errStale, err)
	}
	if len(body) > maxDocument {
		return 0, nil, fmt.Errorf("%w: longer than %d bytes", errMalformed, maxDocument)
	}
	if n := headers.Get("Content-Length"); n != "" && n != strconv.Itoa(len(body)) && status != statusNoContent {
		return 0, nil, fmt.Errorf("%w: %d bytes of %s came", errStale, len(body), n)
	}
	return status, body, nil
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
