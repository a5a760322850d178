// streamclient is a client of exec, attach and port-forward made of client-go, as kubectl and kubelet's users are.
//
//	streamclient [flags] stream URL
//	    Connects its own stdin, stdout and stderr. URL is what Exec or Attach of the CRI gave. Ends with the command's exit
//	    code; 250 and text on stderr, after "streamclient: ", when there is none.
//	streamclient [flags] forward URL LOCAL:REMOTE...
//	    Writes "listening LOCAL REMOTE" for each port (LOCAL 0 is any), forwards until its stdin ends or the connection is
//	    lost, then ends with 0 or 250.
//
// -protocol of stream: spdy, ws, fallback (WebSocket, then SPDY), or one version: spdy-v1 to spdy-v4, ws-v1 to ws-v5.
// -protocol of forward: spdy, ws (SPDY tunnelled), fallback.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	"k8s.io/klog/v2"
)

const noExitCode = 250

var versions = map[string]string{
	"v1": "channel.k8s.io", "v2": "v2.channel.k8s.io", "v3": "v3.channel.k8s.io", "v4": "v4.channel.k8s.io",
	"v5": "v5.channel.k8s.io",
}

func config(u *url.URL) *rest.Config {
	c := &rest.Config{Host: u.Host}
	c.TLSClientConfig.Insecure = u.Scheme == "https"
	return c
}

func spdyExecutor(u *url.URL, version string) (remotecommand.Executor, error) {
	if version == "" {
		return remotecommand.NewSPDYExecutor(config(u), http.MethodPost, u)
	}
	transport, upgrader, err := spdy.RoundTripperFor(config(u))
	if err != nil {
		return nil, err
	}
	return remotecommand.NewSPDYExecutorForProtocols(transport, upgrader, http.MethodPost, u, version)
}

func wsExecutor(u *url.URL, version string) (remotecommand.Executor, error) {
	if version == "" {
		return remotecommand.NewWebSocketExecutor(config(u), http.MethodGet, u.String())
	}
	return remotecommand.NewWebSocketExecutorForProtocols(config(u), http.MethodGet, u.String(), version)
}

func executor(u *url.URL, protocol string) (remotecommand.Executor, error) {
	kind, v, restricted := strings.Cut(protocol, "-")
	version := versions[v]
	if restricted && version == "" {
		return nil, fmt.Errorf("no protocol %q", protocol)
	}
	switch kind {
	case "spdy":
		return spdyExecutor(u, version)
	case "ws":
		return wsExecutor(u, version)
	case "fallback":
		first, err := wsExecutor(u, "")
		if err != nil {
			return nil, err
		}
		second, err := spdyExecutor(u, "")
		if err != nil {
			return nil, err
		}
		return remotecommand.NewFallbackExecutor(first, second, httpstream.IsUpgradeFailure)
	}
	return nil, fmt.Errorf("no protocol %q", protocol)
}

// sizes gives each of a list of terminal sizes once, then waits for ever.
type sizes struct {
	left []remotecommand.TerminalSize
}

func (s *sizes) Next() *remotecommand.TerminalSize {
	if len(s.left) == 0 {
		select {}
	}
	next := s.left[0]
	s.left = s.left[1:]
	return &next
}

func parseSizes(text string) (*sizes, error) {
	s := &sizes{}
	for _, one := range strings.Split(text, ",") {
		var size remotecommand.TerminalSize
		if _, err := fmt.Sscanf(one, "%dx%d", &size.Height, &size.Width); err != nil {
			return nil, fmt.Errorf("size %q: %w", one, err)
		}
		s.left = append(s.left, size)
	}
	return s, nil
}

func stream(u *url.URL, protocol string, options remotecommand.StreamOptions) (int, error) {
	e, err := executor(u, protocol)
	if err != nil {
		return noExitCode, err
	}
	err = e.StreamWithContext(context.Background(), options)
	var exit exec.CodeExitError
	if errors.As(err, &exit) {
		return exit.Code, nil
	}
	if err != nil {
		return noExitCode, err
	}
	return 0, nil
}

func dialer(u *url.URL, protocol string) (httpstream.Dialer, error) {
	transport, upgrader, err := spdy.RoundTripperFor(config(u))
	if err != nil {
		return nil, err
	}
	plain := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	tunnel, err := portforward.NewSPDYOverWebsocketDialer(u, config(u))
	if err != nil {
		return nil, err
	}
	switch protocol {
	case "spdy":
		return plain, nil
	case "ws":
		return tunnel, nil
	case "fallback":
		return portforward.NewFallbackDialer(tunnel, plain, httpstream.IsUpgradeFailure), nil
	}
	return nil, fmt.Errorf("no protocol %q", protocol)
}

func forward(u *url.URL, protocol string, ports []string) error {
	d, err := dialer(u, protocol)
	if err != nil {
		return err
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddresses(d, []string{"127.0.0.1"}, ports, stop, ready, io.Discard, os.Stderr)
	if err != nil {
		return err
	}
	go func() {
		<-ready
		got, err := f.GetPorts()
		if err != nil {
			fmt.Fprintln(os.Stderr, "streamclient:", err)
			os.Exit(noExitCode)
		}
		for _, p := range got {
			fmt.Println("listening", strconv.Itoa(int(p.Local)), strconv.Itoa(int(p.Remote)))
		}
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	return f.ForwardPorts()
}

func main() {
	protocol := flag.String("protocol", "spdy", "how to talk to the server")
	stdin := flag.Bool("stdin", false, "stream: with standard input")
	tty := flag.Bool("tty", false, "stream: with a terminal (no stderr)")
	resize := flag.String("sizes", "", "stream: terminal sizes to set, ROWSxCOLUMNS,...")
	flag.Parse()
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, "streamclient:", err)
		os.Exit(noExitCode)
	}
	if flag.NArg() < 2 {
		flag.Usage()
		os.Exit(noExitCode)
	}
	u, err := url.Parse(flag.Arg(1))
	if err != nil {
		fail(err)
	}
	switch flag.Arg(0) {
	case "stream":
		// stderr is the command's. client-go says there, for one, that it had no stream yet for the empty message that the
		// WebSocket protocol begins with.
		klog.LogToStderr(false)
		klog.SetOutput(io.Discard)
		options := remotecommand.StreamOptions{Stdout: os.Stdout, Tty: *tty}
		if !*tty {
			options.Stderr = os.Stderr
		}
		if *stdin {
			options.Stdin = os.Stdin
		}
		if *resize != "" {
			s, err := parseSizes(*resize)
			if err != nil {
				fail(err)
			}
			options.TerminalSizeQueue = s
		}
		code, err := stream(u, *protocol, options)
		if err != nil {
			fail(err)
		}
		os.Exit(code)
	case "forward":
		if err := forward(u, *protocol, flag.Args()[2:]); err != nil {
			fail(err)
		}
	default:
		fail(fmt.Errorf("no command %q", flag.Arg(0)))
	}
}
