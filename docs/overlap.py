#!/usr/bin/env python3
"""Measure "use while it downloads" against "download, then use", and draw docs/overlap.svg.

A server on 127.0.0.1 sends a file of 64 MiB at 16 MiB/s, and takes uploads at 16 MiB/s. The use of
the file is that upload. Two ways, one after the other:

    curl       curl --output FILE, then curl --upload-file FILE
    fsmount    mount the file, then curl --upload-file from the mount, while the file downloads

A bar is what the server saw, from the first to the last byte of a transfer. A total runs from the
start of the first command to the end of the last, and includes the mount and the unmount. The
server checks that the upload is the file. Each way runs three times, and the picture shows the
run with the median total. It takes 40 seconds, on an idle machine, and needs curl:

    make && python3 docs/overlap.py
"""
import http.server, os, pathlib, re, signal, subprocess, sys, tempfile, threading, time

MIB = 1 << 20
SIZE, RATE, CHUNK = 64 * MIB, 16 * MIB, MIB // 4  # bytes, bytes a second, bytes
DOCS = pathlib.Path(__file__).resolve().parent
CURL = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "60"]

SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 260" width="720" height="260" role="img" \
aria-labelledby="title desc">
<title id="title">Upload a remote file: {curl:.2f} s with curl, {fsmount:.2f} s with fsmount</title>
<desc id="desc">curl downloads the file and then uploads it: {curl:.2f} s, {curl_ratio:.2f} times the slower \
of the two. With fsmount, the upload runs while the file downloads: {fsmount:.2f} s, {fsmount_ratio:.2f} times.</desc>
<style>
text {{ font: 12px -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; fill: #59636e }}
.strong {{ font-size: 15px; font-weight: 600; fill: #1f2328 }}
.middle {{ text-anchor: middle }} .bar {{ fill: #ffffff }} .grid {{ stroke: #d1d9e0 }}
.page {{ fill: #ffffff; stroke: #d1d9e0 }} .download {{ fill: #0969da }} .upload {{ fill: #bc4c00 }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #9198a1 }} .strong {{ fill: #f0f6fc }} .bar {{ fill: #ffffff }} .grid {{ stroke: #3d444d }}
.page {{ fill: #0d1117; stroke: #3d444d }} .download {{ fill: #1f6feb }} .upload {{ fill: #bd561d }}
}}
</style>
<rect class="page" x="0.5" y="0.5" width="719" height="259" rx="6"/>
<text class="strong" x="20" y="32">Upload a remote file of {size} MiB</text>
<text x="20" y="53">The server sends it at {rate} MiB/s at most, and takes the upload at {rate} MiB/s at most.</text>
{drawing}
</svg>
"""


class Way:
    """One direction of the server: its limit, and when it was busy."""

    def __init__(self):
        self.lock, self.start, self.end, self.free = threading.Lock(), None, None, None

    def take(self, count):
        """Wait until the limit, which all connections share, allows count bytes more."""
        with self.lock:
            now = time.monotonic()
            self.start = self.start or now
            self.free = max(self.free or now, now - 0.05) + count / RATE  # make up for a late wake-up
        time.sleep(max(0, self.free - now))
        self.end = time.monotonic()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def do_GET(self):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, end = (int(asked[1]), int(asked[2] or SIZE - 1) + 1) if asked else (0, SIZE)
        self.answer(206 if asked else 200, Content_Length=end - first, ETag='"1"',
                    Content_Range=f"bytes {first}-{end - 1}/{SIZE}")
        for at in range(first, end, CHUNK):
            if end - first > 1:  # else it is fsmount's question for the size
                self.server.down.take(min(CHUNK, end - at))
            self.wfile.write(self.server.content[at:min(at + CHUNK, end)])

    def do_POST(self):
        for at in range(0, int(self.headers["Content-Length"]), CHUNK):
            part = self.rfile.read(CHUNK)
            self.server.up.take(len(part))
            self.server.same += part == self.server.content[at:at + CHUNK]
        self.answer(200, Content_Length=0)


def measure(server, run):
    """Return the total seconds of run, and when its download and its upload start and end."""
    server.down, server.up, server.same = Way(), Way(), 0
    begin = time.monotonic()
    run()
    total = time.monotonic() - begin
    if server.same != SIZE // CHUNK:
        sys.exit("the upload is not the file")
    return total, [(way.start - begin, way.end - begin) for way in (server.down, server.up)]


def draw(curl, fsmount):
    slower = max(end - start for start, end in curl[1])  # of the two transfers, each alone
    x = lambda seconds: round(196 + seconds * 350 / curl[0], 1)
    parts = [f'<path class="grid" d="M{x(t)} 72V226"/><text class="middle" x="{x(t)}" y="245">{t} s</text>'
             for t in range(0, int(curl[0]) + 1, 2)]
    for y, name, what, (total, spans) in ((82, "curl", "download, then upload", curl),
                                          (160, "fsmount", "upload while it downloads", fsmount)):
        ratio = f"{total / slower:.2f} × the slower side"
        parts += [f'<text class="strong" x="{at}" y="{y + 24}">{head}</text><text x="{at}" y="{y + 43}">{tail}</text>'
                  for at, head, tail in ((20, name, what), (560, f"{total:.2f} s", ratio))]
        for top, kind, (start, end) in zip((y, y + 29), ("download", "upload"), spans):
            parts.append(f'<rect class="{kind}" x="{x(start)}" y="{top}" width="{x(end) - x(start):.1f}" height="26" '
                         f'rx="3"/><text class="bar middle" x="{x((start + end) / 2)}" y="{top + 17}">'
                         f'{kind} {end - start:.2f} s</text>')
    return SVG.format(curl=curl[0], curl_ratio=curl[0] / slower, fsmount=fsmount[0], drawing="\n".join(parts),
                      fsmount_ratio=fsmount[0] / slower, size=SIZE // MIB, rate=RATE // MIB)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # cleans up
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, url = os.urandom(SIZE), f"http://127.0.0.1:{server.server_port}/file"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    curl = lambda *arguments: subprocess.run([*CURL, *arguments, url], check=True)
    upload = lambda path: curl("--request", "POST", "--upload-file", path)

    with tempfile.TemporaryDirectory(prefix="fsmount-overlap-") as scratch:
        os.mkdir(f"{scratch}/dir")
        download_and_upload = lambda: (curl("--output", f"{scratch}/copy"), upload(f"{scratch}/copy"))

        def mount_and_upload():
            command = [DOCS.parent / "fsmount", "-mount", f"{scratch}/dir", "--temp-dir", scratch, url]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as mount:
                try:
                    if b"mounted at" in mount.stdout.readline():
                        upload(f"{scratch}/dir/file")
                finally:
                    mount.terminate()
                    mount.wait(30)  # fsmount unmounts and ends

        ways = [sorted(measure(server, way) for _ in range(3)) for way in (download_and_upload, mount_and_upload)]
    print("total seconds, and (start, end) of download and upload:", *ways[0], *ways[1], sep="\n")
    (DOCS / "overlap.svg").write_text(draw(*(runs[1] for runs in ways)))


if __name__ == "__main__":
    main()
